"""Published checkpoints of the networks in arXiv:2202.02018 as networks of ours.

A published state does not say which configuration made it; that is inferred from the weights'
shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from img2img_recon.networks.mixers import LEVELS, Img2ImgMixer, MultiResMixer, OriginalMixer
from img2img_recon.networks.vit import VisionTransformer
from img2img_recon.support.errors import InputError
from img2img_recon.weights_file import foreign_weights, under
from img2img_recon.wrappers import Normalized

State = dict[str, Tensor]

# Channels per attention head in every published transformer.
PUBLISHED_HEAD_WIDTH = 44


def load_reference_checkpoint(
    checkpoint: str | Path | Mapping[str, Any],
    *,
    num_heads: int | None = None,
    img_size: tuple[int, int] | None = None,
) -> nn.Module:
    """Load a published checkpoint into our network of the same function.

    The network is recognised by the names of its weights: the image-to-image, linear, original and
    multi-resolution mixers, the vision transformer, and fastMRI's U-Net. The names may share a
    prefix, as in the state of a training module. Where it ends in `net.`, the network was inside
    the published wrapper that normalises every image, and the result is `Normalized(network)`.

    Args:
        checkpoint: a .npz, .pt, .pth, .ckpt or .safetensors file, or a dictionary of tensors or
            arrays. The weights may lie under "state_dict", "model_state_dict", "model" or "state".
        num_heads: attention heads of a vision transformer, which its weights do not tell. Left out,
            it is the width / 44, as in all published ones.
        img_size: (H, W) of the images of an original mixer, whose weights only tell the number of
            patches. Left out, the images are square.

    Returns:
        The network in evaluation mode, in the dtype of the state.

    Raises:
        InputError: the file cannot be read, its weights are those of no known network, or something
            that cannot be inferred was not given.
        ImportError: it is a U-Net and `fastmri` is not installed.
    """
    form, prefix, state = _recognise(foreign_weights(checkpoint))
    hints = {"num_heads": num_heads, "img_size": img_size}
    for name, hint in hints.items():
        if hint is not None and name != form.hint:
            raise InputError(
                f"{name} is {hint}, but the weights of the {form.title} tell their own"
            )
    try:
        net = form.build(state, *([hints[form.hint]] if form.hint else []))
    except KeyError as error:
        raise InputError(f"the checkpoint of the {form.title} has no {error.args[0]!r}") from None
    net.to(next(iter(state.values())).dtype)
    _load(net, {form.our_name(name): tensor for name, tensor in state.items()}, form.title)
    if prefix.split(".")[-2:] == ["net", ""]:
        # The published wrapper pads for the transformer, before it normalises.
        net = Normalized(net, net.patch_size if isinstance(net, VisionTransformer) else 1)
    return net.eval()


class _Form(NamedTuple):
    """One published network: how it is recognised, built and renamed."""

    title: str
    anchor: str  # the name of a weight that only this network has
    build: Callable[..., nn.Module]  # from the state, and from the hint if there is one
    renames: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
    hint: str | None = None  # what the weights do not always tell

    def our_name(self, name: str) -> str:
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name


def _count(state: State, pattern: str) -> int:
    """How many different numbers stand in the group of `pattern` over all names."""
    return len({found[1] for name in state if (found := re.match(pattern, name))})


def _ratio(state: State, name: str) -> int:
    """Hidden width of an MLP over its input, from its first weight."""
    hidden, width = state[name].shape
    return hidden // width


def _patches(state: State, embedding: str) -> dict[str, int]:
    """What the weight of the patch embedding tells."""
    embed_dim, in_chans, patch_size, _ = state[embedding].shape
    return {"embed_dim": embed_dim, "in_chans": in_chans, "patch_size": patch_size}


def _pixels(grid: Sequence[int], patch_size: int) -> tuple[int, int]:
    """The size of images of so many patches."""
    return grid[0] * patch_size, grid[1] * patch_size


def _image_to_image_mixer(state: State) -> nn.Module:
    patches = _patches(state, "patch_embed.proj.0.weight")
    is_linear = "mixer_layers.0.token_mixing.2.weight" in state
    model = "" if is_linear else "model.0."
    grid = [state[f"mixer_layers.0.token_mixing.{i}.{model}weight"].shape[1] for i in (2, 4)]
    return Img2ImgMixer(
        img_size=_pixels(grid, patches["patch_size"]),
        out_chans=state["patch_expand.output.weight"].shape[0],
        depth=_count(state, r"mixer_layers\.(\d+)\."),
        mlp_ratio=_ratio(state, "mixer_layers.0.channel_mixing.1.model.0.weight"),
        token_mixing="linear" if is_linear else "mlp",
        **patches,
    )


def _original_mixer(state: State, img_size: tuple[int, int] | None) -> nn.Module:
    patches = _patches(state, "embed.proj.0.weight")
    patch_size = patches["patch_size"]
    tokens_mlp_dim, num_tokens = state["layers.0.token_mixing.2.model.0.weight"].shape
    side = math.isqrt(num_tokens) * patch_size
    if img_size is None and side * side != num_tokens * patch_size**2:
        raise InputError(
            f"the original mixer's {num_tokens} patches are no square; give img_size=(H, W)"
        )
    H, W = img_size or (side, side)
    if num_tokens * patch_size**2 != H * W:
        raise InputError(
            f"img_size {H} x {W} does not have the checkpoint's {num_tokens} patches of "
            f"{patch_size} x {patch_size}"
        )
    return OriginalMixer(
        img_size=(H, W),
        out_chans=state["embed_transpose.proj_transpose.1.weight"].shape[1],
        depth=_count(state, r"layers\.(\d+)\."),
        tokens_mlp_dim=tokens_mlp_dim,
        channels_mlp_dim=state["layers.0.channel_mixing.1.model.0.weight"].shape[0],
        **patches,
    )


def _multires_mixer(state: State) -> nn.Module:
    patches = _patches(state, "patch_embed.proj.0.weight")
    grid = [state[f"mixer1.token_mixing.{i}.model.0.weight"].shape[1] for i in (2, 4)]
    return MultiResMixer(
        img_size=_pixels(grid, patches["patch_size"]),
        out_chans=state["final_expand.output.weight"].shape[0],
        mlp_ratio=_ratio(state, "mixer1.channel_mixing.1.model.0.weight"),
        **patches,
    )


def _vit(state: State, num_heads: int | None) -> nn.Module:
    patches = _patches(state, "patch_embed.proj.weight")
    embed_dim, patch_size = patches["embed_dim"], patches["patch_size"]
    if num_heads is None and embed_dim % PUBLISHED_HEAD_WIDTH:
        raise InputError(
            f"the vision transformer's width {embed_dim} is not a multiple of the published "
            f"{PUBLISHED_HEAD_WIDTH} channels per head; give num_heads"
        )
    return VisionTransformer(
        img_size=_pixels(state["pos_embed"].shape[2:], patch_size),
        out_chans=state["head.weight"].shape[0] // patch_size**2,
        depth=_count(state, r"blocks\.(\d+)\."),
        num_heads=num_heads or embed_dim // PUBLISHED_HEAD_WIDTH,
        mlp_ratio=_ratio(state, "blocks.0.mlp.fc1.weight"),
        **patches,
    )


def _unet(state: State) -> nn.Module:
    from img2img_recon.networks.unet import UNet  # needs fastmri

    chans, in_chans, _, _ = state["down_sample_layers.0.layers.0.weight"].shape
    num_pool_layers = _count(state, r"down_sample_layers\.(\d+)\.")
    return UNet(
        in_chans=in_chans,
        out_chans=state[f"up_conv.{num_pool_layers - 1}.1.weight"].shape[0],
        chans=chans,
        num_pool_layers=num_pool_layers,
    )


def _level(found: re.Match[str]) -> str:
    """`mixer2.` is the second level's way down, `mixer22.` its way up."""
    way = "down" if len(found[1]) == 1 else "up"
    return f"{way}_layers.{int(found[1][0]) - 1}."


def _fc(mlp: str, ours: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return (rf"{mlp}\.model\.0\.", f"{ours}.fc1."), (rf"{mlp}\.model\.2\.", f"{ours}.fc2.")


_CHANNEL_MIXING = (
    *_fc(r"channel_mixing\.1", "channel_mixing"),
    (r"channel_mixing\.0\.", "channel_norm."),
    (r"token_mixing\.0\.", "token_norm."),
)
_MIXER_LAYER = (
    *_fc(r"token_mixing\.2", "height_mixing"),
    *_fc(r"token_mixing\.4", "width_mixing"),
    *_CHANNEL_MIXING,
    (r"patch_embed\.proj\.0\.", "patch_embed.proj."),
)

_MIXER = _Form(
    "image-to-image mixer",
    "mixer_layers.0.token_mixing.2.model.0.weight",
    _image_to_image_mixer,
    (*_MIXER_LAYER, (r"^patch_expand\.output\.", "output.")),
)
_LINEAR = _Form(
    "linear mixer",
    "mixer_layers.0.token_mixing.2.weight",
    _image_to_image_mixer,
    (
        (r"token_mixing\.2\.", "height_mixing."),
        (r"token_mixing\.4\.", "width_mixing."),
        *_MIXER.renames,
    ),
)
_ORIGINAL = _Form(
    "original mixer",
    "embed_transpose.proj_transpose.1.weight",
    _original_mixer,
    (
        (r"^embed\.proj\.0\.", "patch_embed.proj."),
        (r"^layers\.", "mixer_layers."),
        *_fc(r"token_mixing\.2", "token_mixing"),
        *_CHANNEL_MIXING,
        (r"^embed_transpose\.proj_transpose\.1\.", "output."),
    ),
    "img_size",
)
_MULTIRES = _Form(
    "multi-resolution mixer",
    "mixer44.token_mixing.0.weight",
    _multires_mixer,
    (
        (r"^mixer(1|11|2|22|3|33|4|44)\.", _level),
        *_MIXER_LAYER,
        (r"^patch_merge(\d)\.", lambda found: f"merges.{int(found[1]) - 1}."),
        # The published expansions count from the coarsest level, ours from the finest.
        (r"^patch_expand(\d)\.", lambda found: f"expands.{LEVELS - 1 - int(found[1])}."),
        (r"^final_expand\.output\.", "output."),
        (r"^final_expand\.", "patch_expand."),
    ),
)
_VIT = _Form(
    "vision transformer",
    "blocks.0.attn.qkv.weight",
    _vit,
    (
        (r"\.norm1\.", ".attention_norm."),
        (r"\.attn\.", ".attention."),
        (r"\.norm2\.", ".mlp_norm."),
    ),
    "num_heads",
)
_UNET = _Form("U-Net", "down_sample_layers.0.layers.0.weight", _unet, ((r"^", "unet."),))
_FORMS = (_MIXER, _LINEAR, _ORIGINAL, _MULTIRES, _VIT, _UNET)


def _recognise(state: State) -> tuple[_Form, str, State]:
    """Find the network of a state, the prefix of its names, and the state without the prefix."""
    for form in _FORMS:
        found = [name for name in state if f".{name}".endswith(f".{form.anchor}")]
        if not found:
            continue
        prefix = found[0].removesuffix(form.anchor)
        # A training module's state also holds the window of fastMRI's SSIM loss.
        rest = {name for name in state if not name.startswith(prefix)} - {"loss.w"}
        if rest:
            raise InputError(
                f"the checkpoint has the {form.title} under {prefix!r} and, beside it, {_some(rest)}"
            )
        return form, prefix, under(state, prefix)
    raise InputError(
        f"the checkpoint is of no known network ({', '.join(form.title for form in _FORMS)}); "
        f"it has {_some(state)}"
    )


def _load(net: nn.Module, state: State, title: str) -> None:
    """Fill `net` with `state`, whose names are ours; convolutions over patches become matrices."""
    ours = net.state_dict()
    missing, unknown = ours.keys() - state.keys(), state.keys() - ours.keys()
    problems = [f"it misses {_some(missing)}"] if missing else []
    problems += [f"it has unknown {_some(unknown)}"] if unknown else []
    fitted = {}
    for name in (name for name in ours if name in state):
        own, given = ours[name], state[name]
        fitted[name] = given.flatten(1) if given.ndim > own.ndim else given
        if fitted[name].shape != own.shape and not problems:
            shapes = f"{tuple(given.shape)} where {tuple(own.shape)} is needed"
            problems = [f"{name} has shape {shapes}"]
    if problems:
        raise InputError(f"the checkpoint does not fit the {title}: {' and '.join(problems)}")
    net.load_state_dict(fitted)


def _some(names: Mapping[str, Any] | set[str]) -> str:
    """List the first few names, and how many more there are."""
    first = sorted(names)[:5]
    more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
    return (", ".join(repr(name) for name in first) or "nothing") + more
