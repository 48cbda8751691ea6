"""Tasks of EleutherAI's lm-eval: our models behind its interface, and the data of some tasks from local files."""
