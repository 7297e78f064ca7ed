"""What residual blocks make of the embedding together is what each makes of it alone."""

import pytest
import torch as th

from improved_diffusion.models.embedding import EmbeddingProjections
from improved_diffusion.unet import ResBlock

WIDTHS = [32, 64, 32]


def make_blocks(scale_shift):
    th.manual_seed(0)
    blocks = [ResBlock(32, 16, 0, w, use_scale_shift_norm=scale_shift) for w in WIDTHS]
    for block in blocks:
        for p in (*block.out_layers[0].parameters(), *block.emb_layers.parameters()):
            th.nn.init.normal_(p)
    return blocks


@pytest.mark.parametrize("scale_shift", [False, True])
def test_blocks_are_given_what_they_make_of_the_embedding_themselves(scale_shift):
    blocks, emb = make_blocks(scale_shift), th.randn(5, 16)
    projections = EmbeddingProjections(emb, blocks)
    for block in blocks:
        made = block.emb_layers(emb)
        if scale_shift:
            norm = block.out_layers[0]
            scale, shift = made.chunk(2, dim=1)
            made = (1 + scale) * norm.weight, (1 + scale) * norm.bias + shift
        th.testing.assert_close(projections.of(block, emb), made)


def test_nothing_is_known_of_another_embedding_or_block():
    blocks, emb = make_blocks(False), th.randn(5, 16)
    projections = EmbeddingProjections(emb, blocks[:2])
    assert projections.of(blocks[0], emb) is not None
    assert projections.of(blocks[0], emb.clone()) is None
    assert projections.of(blocks[2], emb) is None


def test_blocks_whose_layers_are_no_longer_plain_compute_for_themselves():
    plain, hooked, replaced = blocks = make_blocks(False)
    hooked.emb_layers[1].register_forward_hook(lambda *_: None)
    replaced.emb_layers[1] = th.nn.Sequential(replaced.emb_layers[1])
    emb = th.randn(5, 16)
    projections = EmbeddingProjections(emb, blocks)
    assert [projections.of(block, emb) is None for block in blocks] == [False, True, True]
    th.testing.assert_close(projections.of(plain, emb), plain.emb_layers(emb))
