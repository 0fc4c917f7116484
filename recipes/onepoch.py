"""`onepoch`: "Learning MNIST in 1 epoch", two convolution blocks and one fully connected layer.

Documented: two blocks of Conv 3×3, ReLU, Dropout2d 0.1, MaxPool, BatchNorm in that unusual order, the first with 5
channels; one linear layer; exactly one epoch; 98.13 % on the test images after it.
Silent on: the second block's width, batch size, optimizer, learning rate, and the parameter count that follows.

Choices, all made on 5,000 held-out training images (`validation=5000`), never on the test images:
- Width 32, the smallest of 5, 8, 10, 16, 20, 32 whose regime reaches the claim as a mean. With AdamW 0.015 and label
  smoothing 0.05 (6 seeds): 5: 96.4 %, 8: 97.0, 10: 97.3, 16: 97.7, 20: 97.9, 32: 98.1.
- Batch 64: 32 and 16 gain up to 0.1 points and cost 1.5 and 3 times the time.
- AdamW, lr rising to 0.03 over a fifth of the steps and falling to zero, weight decay 0.1, label smoothing 0.03:
  98.13 % (mean of 6 seeds). SGD with momentum came to 98.10, no smoothing and no decay to 98.03, a weight average
  to 97.99, one cosine cycle to 97.9.
- 9,606 parameters follow.

Measured on the test images after the last epoch, mean of 20 seeds: 98.54 ± 0.10 % (at least 98.33), by
    python -m mnist_accel verify recipe=onepoch seeds=20
A mean as high has a chance below 0.001 if 98.13 % were the true one.
"""

from mnist_accel.recipe import Claim, Measured, Recipe

RECIPE = Recipe(
    name="onepoch",
    model="onepoch",
    epochs=1,
    batch_size=64,
    optimizer="adamw",
    lr=0.03,
    weight_decay=0.1,
    schedule="linear",
    warmup=0.2,
    label_smoothing=0.03,
    dropout=0.1,
    claims=(
        Claim(metric="accuracy", relation=">=", value=98.13, epoch=1),
        Claim(metric="parameters", relation="=", value=9_606, note="our choice"),
    ),
    measured=Measured(
        accuracy=98.54, seeds=20, spread=0.1, command="python -m mnist_accel verify recipe=onepoch seeds=20"
    ),
)
