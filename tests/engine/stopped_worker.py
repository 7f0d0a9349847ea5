"""A training process that stops itself: `python -m tests.engine.stopped_worker FOLDER RANK`."""

import os
import signal
import sys
from pathlib import Path

from handmim.engine.trainer import Trainer
from handmim.utils.run import Run
from tests.engine.toy import DATA, ToyTask, collate, optimizer_config, prepare

if __name__ == "__main__":
    folder, stopped = Path(sys.argv[1]), int(sys.argv[2])
    run = Run.start("stopped", folder, 0, {}, accelerator="cpu", stall_timeout_s=2.0)

    def stop(batch, generator, info):
        if info.step == 3 and run.rank == stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        return prepare(batch, generator, info)

    Trainer(max_steps=10, batch_size=4).fit(run, ToyTask(), DATA, collate, stop, optimizer_config())
