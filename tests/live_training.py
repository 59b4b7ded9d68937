"""A short training while others print, then one that is interrupted; `test_live_terminal.py` runs it."""

import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

from tqdm import tqdm
from trainer_fakes import make_trainer, tasks
from transformers import TrainerCallback

from trl_mise import HindsightHealthWarning

handler = logging.StreamHandler()  # holds the stderr of before
handler.setFormatter(logging.Formatter("logged: %(message)s"))
logging.getLogger("others").addHandler(handler)


class Others(TrainerCallback):
    """What libraries and environments do while a run goes on."""

    def on_step_end(self, args: Any, state: Any, control: Any, update: Any = None, **kwargs: Any) -> None:
        if state.global_step == 1:
            print("first line\nsecond line")
            print("to stderr", file=sys.stderr)
        if state.global_step == 2:
            for _ in tqdm(range(50), desc="their bar", mininterval=0.0):
                pass
            logging.getLogger("others").warning("by a handler")
        if state.global_step == 3:
            update.warnings.append("ill judge: it praises everything")
            warnings.warn("update 3: ill judge: it praises everything", HindsightHealthWarning, stacklevel=1)


class Interrupt(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)


def main(folder: Path) -> None:
    options: dict[str, Any] = {"disable_tqdm": False, "eval_dataset": tasks(4), "total_episodes": 32}
    trainer = make_trainer(folder / "whole", callbacks=[Others()], eval_strategy="steps", eval_steps=2, **options)
    print("-- start")
    trainer.evaluate()
    print("-- evaluated")
    trainer.train()
    print("-- trained")
    trainer = make_trainer(folder / "interrupted", callbacks=[Interrupt()], **options)
    try:
        trainer.train()
    except KeyboardInterrupt:
        print("-- interrupted")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
