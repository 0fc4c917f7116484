"""``verify`` on a few images that are called MNIST, into the evidence of the working folder."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import recipes
from mnist_accel import errors
from mnist_accel.commands import verify
from mnist_accel.data.dataset import Dataset
from mnist_accel.data.synthetic import draw_dataset
from mnist_accel.runs import run

FEW = Dataset(name="mnist", reason="a test", checksum="0" * 64, **draw_dataset(0, 600, 200))

if __name__ == "__main__":
    run.load_dataset = lambda dataset, data_dir: replace(FEW)
    recipes.EVIDENCE = Path.cwd() / "evidence"
    errors.exit_with_one_line(lambda: verify.main(sys.argv[1:]))
