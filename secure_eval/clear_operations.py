"""The torch operations that a program may name: a closed list, because programs arrive from elsewhere and roles run what they say.

All are functions of their operands alone. Nothing on the list reads or writes anything else (files, the clock, a generator), changes an
operand, or gives a result whose shape depends on values; and of each name only the overloads that change no operand count.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

VIEWS = frozenset(
    """
    alias cumsum constant_pad_nd diagonal expand flatten flip gather index index_select movedim mT numpy_T permute pixel_shuffle
    pixel_unshuffle repeat reshape roll select slice squeeze sum t transpose tril triu unflatten unfold unsqueeze
    """.split()
)
"""Rearrangements of elements and sums of them: what a party may do with each share by itself."""

JOINS = ("aten.cat.default", "aten.stack.default")

CLEAR = (
    VIEWS
    | frozenset(
        # rearranging and copying
        """
        _reshape_alias _to_copy _unsafe_view atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors broadcast_to cat
        channel_shuffle chunk clone concat concatenate contiguous copy detach diag diag_embed dstack expand_as fliplr flipud
        hstack im2col lift_fresh lift_fresh_copy moveaxis narrow pad ravel reflection_pad1d reflection_pad2d reflection_pad3d
        repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape_as rot90 split split_with_sizes stack
        swapaxes swapdims tensor_split tile to type_as unbind unsafe_chunk unsafe_split unsafe_split_with_sizes view view_as
        vstack
        """.split()
    )
    | frozenset(
        # picking and placing
        """
        embedding embedding_bag index_add index_copy index_fill index_put _unsafe_index _unsafe_index_put masked_fill
        masked_scatter diagonal_scatter one_hot scatter scatter_add scatter_reduce select_scatter slice_scatter take
        take_along_dim where
        """.split()
    )
    | frozenset(
        # making
        """
        arange empty empty_like empty_permuted empty_strided eye fill full full_like hamming_window hann_window linspace logspace
        meshgrid new_empty new_empty_strided new_full new_ones new_zeros ones ones_like scalar_tensor tril_indices triu_indices
        vander zero zeros zeros_like
        """.split()
    )
    | frozenset(
        # element by element
        """
        abs absolute acos acosh add addcdiv addcmul asin asinh atan atan2 atanh bitwise_and bitwise_left_shift bitwise_not
        bitwise_or bitwise_right_shift bitwise_xor __and__ __lshift__ __or__ __rshift__ __xor__ ceil celu clamp clamp_max
        clamp_min clip copysign cos cosh deg2rad div divide elu erf erfc erfinv exp exp2 expm1 fix float_power floor floor_divide
        fmax fmin fmod frac gelu glu hardshrink hardsigmoid hardswish hardtanh heaviside hypot ldexp leaky_relu lerp log log10
        log1p log2 log_sigmoid logaddexp logaddexp2 logit maximum minimum mish mul multiply nan_to_num neg negative positive pow
        prelu rad2deg reciprocal relu relu6 remainder round rsqrt rsub selu sgn sigmoid sign silu sin sinc sinh softplus
        softshrink sqrt square sub subtract tan tanh threshold true_divide trunc xlogy
        """.split()
    )
    | frozenset(
        # comparing and ordering
        """
        all allclose any argmax argmin argsort aminmax amax amin bucketize eq equal ge greater greater_equal gt isclose isfinite
        isin isinf isnan isneginf isposinf kthvalue le less less_equal logical_and logical_not logical_or logical_xor lt max
        median min ne not_equal searchsorted signbit sort topk
        """.split()
    )
    | frozenset(
        # sums, products and what layers are made of
        """
        _adaptive_avg_pool2d _adaptive_avg_pool3d _log_softmax _native_batch_norm_legit _native_batch_norm_legit_no_training
        _weight_norm
        _scaled_dot_product_flash_attention_for_cpu _softmax adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
        adaptive_max_pool1d adaptive_max_pool2d addbmm addmm addmv avg_pool1d avg_pool2d avg_pool3d baddbmm bilinear bmm cdist
        conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution cosine_similarity count_nonzero cross
        cummax cummin cumprod diff dot einsum grid_sampler grid_sampler_2d group_norm inner kron layer_norm linalg_inv linalg_norm
        linalg_vector_norm linear log_softmax logcumsumexp logsumexp matmul max_pool1d max_pool2d max_pool3d
        max_pool2d_with_indices mean mm mv nansum native_group_norm native_layer_norm norm outer prod rms_norm _fused_rms_norm
        scaled_dot_product_attention softmax std std_mean tensordot trace upsample_bicubic2d upsample_bilinear2d upsample_linear1d
        upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_bicubic2d_aa _upsample_bilinear2d_aa
        upsample_trilinear3d var var_mean vdot
        """.split()
    )
    | frozenset(
        # complex numbers, which tables of rotations are made of
        "abs angle complex conj conj_physical imag polar real resolve_conj resolve_neg view_as_complex view_as_real".split()
    )
)
"""What whoever knows its operands may compute in the clear."""

UNFILLED = frozenset("empty empty_like empty_permuted empty_strided new_empty new_empty_strided".split())
"""Of these the ones that leave memory as it is: roles would come to different values, so it is filled with zeros."""


class ForbiddenOperation(ValueError):
    """A program names an operation that is on no list."""


@cache
def operation(target: str, allowed: frozenset[str] = CLEAR) -> Callable[..., Any]:
    """The torch operation of a name such as "aten.sum.dim_IntList".

    Raises ForbiddenOperation unless its name is allowed, and it changes none of its operands.
    """
    namespace, _, rest = target.partition(".")
    name, _, overload = rest.partition(".")
    if namespace != "aten" or name not in allowed:
        raise ForbiddenOperation(f"{target} is not among the operations that a program may name")
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or overload not in packet.overloads():
        raise ForbiddenOperation(f"{target}: torch has no such operation")
    function: Callable[..., Any] = getattr(packet, overload)
    if function._schema.is_mutable:  # type: ignore[attr-defined]
        raise ForbiddenOperation(f"{target} changes its operands")
    return function


def is_clear(target: str) -> bool:
    """Whether a program may name it."""
    try:
        operation(target)
    except ForbiddenOperation:
        return False
    return True
