"""What a GPU and a network can do at most, from their makers' data sheets (dense products, no sparsity)."""

from dataclasses import dataclass

GIB = 1024**3
GPUS_PER_NODE = 8
"""Of the nodes that all but the NVL72 racks come in; those have one fast network for 72."""


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    name: str
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes per second of its memory."""
    bf16: float
    """FLOP per second of bfloat16 products on tensor cores."""
    fp32: float
    """FLOP per second of float32 products without TF32: what the float32 head of the learner runs at."""
    nvlink: float
    """Bytes per second in one direction, to its neighbours in the node."""
    domain: int
    """GPUs that share the fast network."""


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 80e9, 2.039e12, 312e12, 19.5e12, 300e9, GPUS_PER_NODE),
        Gpu("h100", 80e9, 3.35e12, 989e12, 67e12, 450e9, GPUS_PER_NODE),
        Gpu("h200", 141e9, 4.8e12, 989e12, 67e12, 450e9, GPUS_PER_NODE),
        Gpu("b200", 180e9, 7.7e12, 2250e12, 75e12, 900e9, GPUS_PER_NODE),
        Gpu("gb200", 186e9, 8.0e12, 2500e12, 80e12, 900e9, 72),
    )
}

LINKS = {"nvlink": 0.0, "ib400": 50e9, "100gbe": 12.5e9, "10gbe": 1.25e9}
"""Networks by name, bytes per second and GPU in one direction; nvlink is that of the GPU. The lecture notes ask for at least 10 Gbit/s (N4)."""
