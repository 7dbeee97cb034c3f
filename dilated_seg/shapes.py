"""The tensors of this package as types: jaxtyping checks them on every call while the tests run, and never else."""

from jaxtyping import Float, Integer, Num
from torch import Tensor

Image = Float[Tensor, "batch 3 height width"]  # RGB, normalised
Mask = Integer[Tensor, "batch height width"]  # class ids, and ignore_index where unlabelled
Logits = Float[Tensor, "batch classes height width"]  # one score map a class, at the image's size
Probabilities = Float[Tensor, "batch classes height width"]  # the softmax of logits, or what a CRF makes of it
Pixels = Num[Tensor, "_ 3 _ _"]  # plain RGB, 0 to 255, bytes or not
Maps = Float[Tensor, "batch _ _ _"]  # features inside a network, of any channels and size
Planes = Float[Tensor, "batch {self.in_channels} height width"]  # an image of as many channels as its network says
