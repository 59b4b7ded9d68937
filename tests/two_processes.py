"""What each of two processes does; run by torchrun from `test_two_processes.py`.

    torchrun --standalone --nproc_per_node 2 two_processes.py FOLDER KIND MOMENT COUNT

Goes on from the newest checkpoint, if there is one; the first process is killed when MOMENT comes the COUNTth time.
Writes what it ended with to `FOLDER/rank-<rank>.pt`.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from test_resume import Kill, result, trainer_of


def main(folder: Path, kind: str, moment: str, count: int) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    callbacks = [Kill(moment, count if rank == 0 else 0)]
    callbacks[0].count = callbacks[0].count or -1
    halves = {"per_device_train_batch_size": 2} if kind != "broken on one" else {}
    trainer = trainer_of(folder, kind, callbacks=callbacks, ddp_backend="gloo", **halves)
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    left = {**result(trainer, folder), "processes": dist.get_world_size()}
    dist.barrier()
    torch.save(left, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
