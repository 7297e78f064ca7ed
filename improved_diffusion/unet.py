"""The UNet of improved-diffusion, and its variant for super-resolution."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch as th
import torch.nn.functional as F
from torch import nn

from .errors import InputError
from .fp16_util import convert_module_to_f16, convert_module_to_f32
from .models.kernels import HALF, Attention, conv_of_doubled, norm_silu, pointwise_nd
from .nn import (
    NO_LABEL,
    SiLU,
    avg_pool_nd,
    checkpoint,
    conv_nd,
    linear,
    normalization,
    timestep_embedding,
    zero_module,
)


class TimestepBlock(nn.Module):
    """A module whose ``forward`` takes the timestep embedding as its second argument."""

    @abstractmethod
    def forward(self, x: th.Tensor, emb: th.Tensor) -> th.Tensor:
        """Apply the module to ``x`` [N, C, ...] given ``emb`` [N, emb_channels]."""


class TimestepEmbedSequential(nn.Sequential, TimestepBlock):
    """A sequence that hands the timestep embedding to those of its children that take one."""

    def forward(self, x: th.Tensor, emb: th.Tensor) -> th.Tensor:  # type: ignore[override]
        """Apply the children in order to ``x`` [N, C, ...]."""
        for layer in self:
            x = layer(x, emb) if isinstance(layer, TimestepBlock) else layer(x)
        return x


class Upsample(nn.Module):
    """Double height and width by repetition, then convolve if asked to.

    :param channels: channels of input and output.
    :param use_conv: whether a 3x3 convolution follows.
    :param dims: spatial dimensions, 1, 2 or 3; of three, the first keeps its size.
    """

    def __init__(self, channels: int, use_conv: bool, dims: int = 2):
        super().__init__()
        self.channels = channels
        self.use_conv = use_conv
        self.dims = dims
        if use_conv:
            self.conv: Any = conv_nd(dims, channels, channels, 3, padding=1)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Map [N, C, H, W] to [N, C, 2H, 2W]."""
        _check_channels(x, self.channels)
        if self.use_conv and self.dims == 2:
            return conv_of_doubled(self.conv, x)
        factor = (1, 2, 2) if self.dims == 3 else 2
        x = F.interpolate(x, scale_factor=factor, mode="nearest")
        return self.conv(x) if self.use_conv else x


class Downsample(nn.Module):
    """Halve height and width, by a convolution of stride 2 or by averaging.

    :param channels: channels of input and output.
    :param use_conv: whether to convolve rather than to average.
    :param dims: spatial dimensions, 1, 2 or 3; of three, the first keeps its size.
    """

    def __init__(self, channels: int, use_conv: bool, dims: int = 2):
        super().__init__()
        self.channels = channels
        self.use_conv = use_conv
        self.dims = dims
        stride = (1, 2, 2) if dims == 3 else 2
        if use_conv:
            self.op = conv_nd(dims, channels, channels, 3, stride=stride, padding=1)
        else:
            self.op = avg_pool_nd(dims, stride)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Map [N, C, H, W] to [N, C, H / 2, W / 2]."""
        _check_channels(x, self.channels)
        return self.op(x)


class ResBlock(TimestepBlock):
    """Two convolutions around a skip connection, conditioned on the timestep embedding.

    :param channels: channels of the input.
    :param emb_channels: width of the timestep embedding.
    :param dropout: probability of dropout before the second convolution.
    :param out_channels: channels of the output; None keeps those of the input.
    :param use_conv: whether a skip connection that changes channels is 3x3 rather than 1x1.
    :param use_scale_shift_norm: whether the embedding scales and shifts the second norm rather
        than being added to its input.
    :param dims: spatial dimensions, 1, 2 or 3.
    :param use_checkpoint: whether to recompute the block in backward instead of storing it.
    :raises InputError: if 32 does not divide the channels.
    """

    # Type checkers do not know what a Sequential holds.
    in_layers: Any
    emb_layers: Any
    out_layers: Any

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int | None = None,
        use_conv: bool = False,
        use_scale_shift_norm: bool = False,
        dims: int = 2,
        use_checkpoint: bool = False,
    ):
        super().__init__()
        self.channels = channels
        self.emb_channels = emb_channels
        self.dropout = dropout
        self.out_channels = out_channels or channels
        self.use_conv = use_conv
        self.use_checkpoint = use_checkpoint
        self.use_scale_shift_norm = use_scale_shift_norm

        width = self.out_channels
        self.in_layers = nn.Sequential(
            normalization(channels),
            SiLU(),
            conv_nd(dims, channels, width, 3, padding=1),
        )
        self.emb_layers = nn.Sequential(
            SiLU(), linear(emb_channels, 2 * width if use_scale_shift_norm else width)
        )
        self.out_layers = nn.Sequential(
            normalization(width),
            SiLU(),
            nn.Dropout(p=dropout),
            zero_module(conv_nd(dims, width, width, 3, padding=1)),
        )
        if width == channels:
            self.skip_connection: nn.Module = nn.Identity()
        elif use_conv:
            self.skip_connection = conv_nd(dims, channels, width, 3, padding=1)
        else:
            self.skip_connection = pointwise_nd(dims, channels, width)

    def forward(self, x: th.Tensor, emb: th.Tensor) -> th.Tensor:
        """Map ``x`` [N, channels, ...] and ``emb`` [N, emb_channels] to [N, out_channels, ...]."""
        return checkpoint(self._forward, (x, emb), self.parameters(), self.use_checkpoint)

    def _forward(self, x: th.Tensor, emb: th.Tensor) -> th.Tensor:
        norm, _, conv = self.in_layers
        h = conv(norm_silu(norm, x))
        norm, _, dropout, conv = self.out_layers
        emb_out = self.emb_layers(emb)
        if self.use_scale_shift_norm:
            h = norm_silu(norm, h, *emb_out.chunk(2, dim=1))
        else:
            emb_out = emb_out.reshape(*emb_out.shape, *[1] * (h.ndim - 2))
            h = norm_silu(norm, h + emb_out.type(h.dtype))
        return self.skip_connection(x) + conv(dropout(h))


class AttentionBlock(nn.Module):
    """Self-attention over all positions around a skip connection.

    :param channels: channels of input and output.
    :param num_heads: heads that the channels are split among.
    :param use_checkpoint: whether to recompute the block in backward instead of storing it.
    :raises InputError: if 32 or the heads do not divide the channels.
    """

    def __init__(self, channels: int, num_heads: int = 1, use_checkpoint: bool = False):
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise InputError(
                f"{channels} channels do not split into {num_heads} attention heads: "
                "choose a number of heads that divides them"
            )
        self.channels = channels
        self.num_heads = num_heads
        self.use_checkpoint = use_checkpoint
        self.norm = normalization(channels)
        self.qkv = pointwise_nd(1, channels, channels * 3)
        self.attention = QKVAttention()
        self.proj_out = zero_module(pointwise_nd(1, channels, channels))

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Map [N, C, ...] to the same shape."""
        return checkpoint(self._forward, (x,), self.parameters(), self.use_checkpoint)

    def _forward(self, x: th.Tensor) -> th.Tensor:
        n, c, *spatial = x.shape
        x = x.reshape(n, c, -1)  # [N, C, T]
        qkv = self.qkv(self.norm(x))  # [N, 3C, T], each head's q, k and v side by side
        h = self.attention(qkv.reshape(n * self.num_heads, -1, qkv.shape[-1]))
        h = self.proj_out(h.reshape(n, c, -1))
        return (x + h).reshape(n, c, *spatial)


class QKVAttention(nn.Module):
    """Dot-product attention (Vaswani et al. 2017, 3.2.1)."""

    def forward(self, qkv: th.Tensor) -> th.Tensor:
        """Map queries, keys and values [B, 3C, T] to [B, C, T]."""
        if qkv.dtype in HALF and qkv.device.type == "cpu":
            return Attention.apply(qkv)
        q, k, v = qkv.chunk(3, dim=1)
        logits = (q * q.shape[1] ** -0.5).mT @ k  # [B, T, T], scaled first: float16 overflows
        # Written as it is, and not as v @ weight.mT, so that the gradient of the softmax arrives
        # in its own layout: transposing it took as long as everything else here.
        return (th.softmax(logits, dim=-1) @ v.mT).mT


class UNetModel(nn.Module):
    """The UNet with attention and timestep embedding (Nichol & Dhariwal 2021, arXiv 2102.09672).

    :param in_channels: channels of the input.
    :param model_channels: channels of the first level; the others have multiples of them.
    :param out_channels: channels of the output.
    :param num_res_blocks: residual blocks per level on the way down; one more on the way up.
    :param attention_resolutions: downsampling factors at which attention takes place; with 4
        among them, it does in the level that is a quarter as wide as the first. The middle block
        always has attention.
    :param dropout: probability of dropout in the residual blocks.
    :param channel_mult: per level, the multiple of ``model_channels``.
    :param conv_resample: whether resampling convolves.
    :param dims: spatial dimensions, 1, 2 or 3.
    :param num_classes: number of classes of a class-conditional model.
    :param use_checkpoint: whether to recompute blocks in backward instead of storing them.
    :param num_heads: attention heads.
    :param num_heads_upsample: attention heads on the way up; -1 means ``num_heads``.
    :param use_scale_shift_norm: see :class:`ResBlock`.
    :param image_size: height that the images will have; only error messages use it.
    :param label_dropout: probability of leaving out an image's label while training.
    :param patch_size: side of the squares of pixels that become channels of the first level, which
        is that much lower than the images.
    :raises InputError: if 32 or the heads do not divide the channels, or for patches of images of
        other than two dimensions.
    """

    time_embed: Any  # see ResBlock
    out: Any

    def __init__(
        self,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float = 0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        num_classes: int | None = None,
        use_checkpoint: bool = False,
        num_heads: int = 1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        image_size: int | None = None,
        label_dropout: float = 0.0,
        patch_size: int = 1,
    ):
        super().__init__()
        if patch_size != 1 and dims != 2:
            raise InputError(f"patch_size {patch_size} is for images of 2 dimensions, not {dims}")
        self.patch_size = patch_size
        self.image_size = image_size
        self.label_dropout = label_dropout
        self.in_channels = in_channels
        self.model_channels = model_channels
        self.out_channels = out_channels
        self.num_res_blocks = num_res_blocks
        self.attention_resolutions = attention_resolutions
        self.dropout = dropout
        self.channel_mult = channel_mult
        self.conv_resample = conv_resample
        self.num_classes = num_classes
        self.use_checkpoint = use_checkpoint
        self.num_heads = num_heads
        self.num_heads_upsample = num_heads if num_heads_upsample == -1 else num_heads_upsample

        emb_channels = 4 * model_channels
        self.time_embed = nn.Sequential(
            linear(model_channels, emb_channels),
            SiLU(),
            linear(emb_channels, emb_channels),
        )
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, emb_channels)

        def res_block(channels: int, out_channels: int) -> ResBlock:
            return ResBlock(
                channels,
                emb_channels,
                dropout,
                out_channels=out_channels,
                use_scale_shift_norm=use_scale_shift_norm,
                dims=dims,
                use_checkpoint=use_checkpoint,
            )

        def attention(channels: int, heads: int) -> AttentionBlock:
            return AttentionBlock(channels, heads, use_checkpoint)

        channels = model_channels
        stem = conv_nd(dims, in_channels * patch_size**2, channels, 3, padding=1)
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(stem)])
        skip_channels = [channels]
        last = len(channel_mult) - 1
        for level, mult in enumerate(channel_mult):
            attends = 2**level in attention_resolutions
            for _ in range(num_res_blocks):
                layers: list[nn.Module] = [res_block(channels, mult * model_channels)]
                channels = mult * model_channels
                if attends:
                    layers.append(attention(channels, num_heads))
                self.input_blocks.append(TimestepEmbedSequential(*layers))
                skip_channels.append(channels)
            if level != last:
                down = Downsample(channels, conv_resample, dims=dims)
                self.input_blocks.append(TimestepEmbedSequential(down))
                skip_channels.append(channels)

        self.middle_block = TimestepEmbedSequential(
            res_block(channels, channels),
            attention(channels, num_heads),
            res_block(channels, channels),
        )

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            attends = 2**level in attention_resolutions
            for i in range(num_res_blocks + 1):
                layers = [res_block(channels + skip_channels.pop(), mult * model_channels)]
                channels = mult * model_channels
                if attends:
                    layers.append(attention(channels, self.num_heads_upsample))
                if level and i == num_res_blocks:
                    layers.append(Upsample(channels, conv_resample, dims=dims))
                self.output_blocks.append(TimestepEmbedSequential(*layers))

        self.out = nn.Sequential(
            normalization(channels),
            SiLU(),
            zero_module(conv_nd(dims, channels, out_channels * patch_size**2, 3, padding=1)),
        )

    def convert_to_fp16(self) -> None:
        """Cast the convolutions between the embedding and the output layers to float16."""
        for blocks in (self.input_blocks, self.middle_block, self.output_blocks):
            blocks.apply(convert_module_to_f16)

    def convert_to_fp32(self) -> None:
        """Undo :meth:`convert_to_fp16`."""
        for blocks in (self.input_blocks, self.middle_block, self.output_blocks):
            blocks.apply(convert_module_to_f32)

    @property
    def inner_dtype(self) -> th.dtype:
        """The dtype that the blocks between the embedding and the output layers compute in."""
        return next(self.input_blocks.parameters()).dtype

    @property
    def side_multiple(self) -> int:
        """What must divide height and width of an input."""
        return self.patch_size * 2 ** (len(self.channel_mult) - 1)

    def to_patches(self, x: th.Tensor) -> th.Tensor:
        """Make squares of p x p pixels channels: from [N, C, pH, pW] to [N, C p^2, H, W]."""
        return x if self.patch_size == 1 else F.pixel_unshuffle(x, self.patch_size)

    def from_patches(self, h: th.Tensor) -> th.Tensor:
        """Undo :meth:`to_patches`."""
        return h if self.patch_size == 1 else F.pixel_shuffle(h, self.patch_size)

    def forward(self, x: th.Tensor, timesteps: th.Tensor, y: th.Tensor | None = None) -> th.Tensor:
        """Apply the model to a batch.

        :param x: [N, in_channels, ...], height and width divisible by ``side_multiple``.
        :param timesteps: [N], may be fractional.
        :param y: [N], class labels from 0 to ``num_classes - 1``, for a class-conditional model
            only; one that is :data:`~improved_diffusion.nn.NO_LABEL` adds no
            embedding.
        :return: [N, out_channels, ...].
        :raises InputError: if the size does not fit, or labels are missing or not wanted.
        """
        emb = self._embed(x, timesteps, y)
        skips = self._encode(x, emb)
        h = self.middle_block(skips[-1], emb)
        for block in self.output_blocks:
            h = block(th.cat([h, skips.pop()], dim=1), emb)
        if not th.is_autocast_enabled(x.device.type):
            h = h.type(x.dtype)  # after blocks that convert_to_fp16 cast
        norm, _, conv = self.out
        return self.from_patches(conv(norm_silu(norm, h)).type(x.dtype))

    def get_feature_vectors(
        self, x: th.Tensor, timesteps: th.Tensor, y: th.Tensor | None = None
    ) -> dict[str, list[th.Tensor] | th.Tensor]:
        """Apply the model and return what its blocks compute instead of its output.

        :return: "down" and "up", a tensor [N, C, ...] per block, and "middle", one tensor.
        """
        emb = self._embed(x, timesteps, y)
        down = self._encode(x, emb)
        middle = self.middle_block(down[-1], emb)
        up, skips = [middle], list(down)
        for block in self.output_blocks:
            up.append(block(th.cat([up[-1], skips.pop()], dim=1), emb))
        return {
            "down": [h.type(x.dtype) for h in down],
            "middle": middle.type(x.dtype),
            "up": [h.type(x.dtype) for h in up[1:]],
        }

    def _embed(self, x: th.Tensor, timesteps: th.Tensor, y: th.Tensor | None) -> th.Tensor:
        """The embedding, [N, emb_channels]."""
        self._check_input(x, y)
        emb = timestep_embedding(timesteps, self.model_channels)
        emb = self.time_embed(emb.type(self.time_embed[0].weight.dtype))
        return emb if y is None else emb + self._embed_labels(y)

    def _embed_labels(self, y: th.Tensor) -> th.Tensor:
        """What labels add to the embedding, [N, emb_channels]: nothing where there is none."""
        if self.training and self.label_dropout:
            dropped = th.rand(y.shape, device=y.device) < self.label_dropout
            y = th.where(dropped, NO_LABEL, y)
        known = y != NO_LABEL
        return self.label_emb(th.where(known, y, 0)) * known[:, None]

    def _encode(self, x: th.Tensor, emb: th.Tensor) -> list[th.Tensor]:
        h, skips = self.to_patches(x).type(self.inner_dtype), []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        return skips

    def _check_input(self, x: th.Tensor, y: th.Tensor | None) -> None:
        if (y is None) != (self.num_classes is None):
            raise InputError(
                "the model is class-conditional and needs labels: give y"
                if y is None
                else "the model is not class-conditional: leave y out, or build it with num_classes"
            )
        if y is not None and y.shape != x.shape[:1]:
            raise InputError(
                f"y has shape {tuple(y.shape)}: give one label for each of {x.shape[0]} images"
            )
        factor = self.side_multiple
        size = tuple(x.shape[2:])
        if any(side % factor for side in size[-2:]):  # a third dimension keeps its size
            patches = f" of patches of {self.patch_size} pixels" if self.patch_size > 1 else ""
            raise InputError(
                f"the model halves its input{patches} {len(self.channel_mult) - 1} times: "
                f"size {size} must be divisible by {factor}"
            )


class SuperResModel(UNetModel):
    """A UNet that sees a low-resolution image beside its input.

    :param in_channels: channels of an image; all other arguments are those of
        :class:`UNetModel`.
    """

    def __init__(self, in_channels: int, *args: Any, **kwargs: Any):
        super().__init__(in_channels * 2, *args, **kwargs)

    def forward(  # type: ignore[override]
        self,
        x: th.Tensor,
        timesteps: th.Tensor,
        low_res: th.Tensor | None = None,
        **kwargs: Any,
    ) -> th.Tensor:
        """Apply the model to ``x`` [N, C, H, W] beside ``low_res`` [N, C, h, w] made as large."""
        return super().forward(self._beside(x, low_res), timesteps, **kwargs)

    def get_feature_vectors(  # type: ignore[override]
        self,
        x: th.Tensor,
        timesteps: th.Tensor,
        low_res: th.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, list[th.Tensor] | th.Tensor]:
        """See :meth:`UNetModel.get_feature_vectors`."""
        return super().get_feature_vectors(self._beside(x, low_res), timesteps, **kwargs)

    @staticmethod
    def _beside(x: th.Tensor, low_res: th.Tensor | None) -> th.Tensor:
        if low_res is None:
            raise InputError("the model needs the low-resolution images: give low_res")
        return th.cat([x, F.interpolate(low_res, x.shape[2:], mode="bilinear")], dim=1)


def _check_channels(x: th.Tensor, channels: int) -> None:
    if x.shape[1] != channels:
        raise InputError(f"the layer is made for {channels} channels, its input has {x.shape[1]}")
