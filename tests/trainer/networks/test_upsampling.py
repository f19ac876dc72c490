import pytest
import torch

from services.common.errors import InvalidInput
from services.trainer.networks.upsampling import UpSampling


def test_small_images_are_stretched_bilinearly_to_a_square() -> None:
    ramp = torch.arange(4.0).expand(1, 1, 2, 4)

    found = UpSampling(8)(ramp)

    assert found.shape == (1, 1, 8, 8)
    assert torch.allclose(found[0, 0, 3], torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]))


def test_images_of_the_size_pass_through() -> None:
    images = torch.randn(2, 3, 8, 8)

    assert UpSampling(8)(images) is images


def test_larger_images_are_refused_with_a_sentence() -> None:
    with pytest.raises(InvalidInput, match="images of 9x8 pixels are larger than the network's 8x8; make them smaller"):
        UpSampling(8)(torch.zeros(1, 3, 8, 9))


def test_a_side_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="input_side is 0; it must be from 1 to 1024"):
        UpSampling(0)
