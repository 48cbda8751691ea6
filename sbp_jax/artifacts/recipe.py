"""The recipe of an artifact: everything that decides its content, and the key made from it."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """What an artifact is made from.

    Attributes:
      stage: name of the stage that makes it.
      version: version of the stage's rules; raise it when the same config should give another result.
      config: the fields of the experiment that change the result, as JSON values.
      inputs: key of each input artifact by the role it plays.
    """

    stage: str
    version: int
    config: dict[str, Any]
    inputs: dict[str, str]

    @property
    def key(self) -> str:
        """16 hexadecimal digits; equal recipes, and only they, have equal keys."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return {"stage": self.stage, "version": self.version, "config": self.config, "inputs": self.inputs}
