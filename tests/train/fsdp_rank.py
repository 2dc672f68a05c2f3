"""`fsdp_rank.py WORK`: a rank of a step that trains with FSDP on a CPU, which accelerate itself would not do.

PyTorch's FSDP runs on CPUs; accelerate sets it up for GPUs alone. So it is told that this is one.
"""

import sys
from pathlib import Path

from accelerate import state
from accelerate.utils import DistributedType

from cdpo.engine.ranks import rank

begin = state.PartialState.__init__


def as_on_gpus(self, *args, **options):
    begin(self, *args, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


def check(device):
    state.PartialState(cpu=True)


state.PartialState.__init__ = as_on_gpus
rank.check = check
sys.exit(rank.main(Path(sys.argv[1])))
