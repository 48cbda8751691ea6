from sbp_jax.cli import main

raise SystemExit(main())
