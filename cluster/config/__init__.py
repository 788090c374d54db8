"""The configuration of a run."""

from cluster.config.load import default_yaml, dump_config, load_config
from cluster.config.schema import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    PublishConfig,
    RayConfig,
    RunConfig,
)

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "EvaluationConfig",
    "ModelConfig",
    "PublishConfig",
    "RayConfig",
    "RunConfig",
    "default_yaml",
    "dump_config",
    "load_config",
]
