"""Which networks of torchvision and timm leave the fast path of ``fastscore.jvps``.

    pip install torchvision timm
    python tools/fast_path.py

One image, random weights, evaluation mode, no gradients. A network leaves the fast path where a
function has no rule (its tangents then come from torch.func.jvp of that function alone) or where
the whole model goes another way; each is said in a warning. In float64 the tangents are compared
with torch.func.jvp of the whole network, where that exists: attention has no forward mode.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import fastscore
from fastscore.derivatives.forward import warned

TORCHVISION = """alexnet vgg11_bn resnet18 squeezenet1_1 densenet121 googlenet shufflenet_v2_x0_5
mobilenet_v2 mobilenet_v3_small resnext50_32x4d mnasnet0_5 efficientnet_b0 regnet_y_400mf vit_b_16
convnext_tiny swin_t swin_v2_t maxvit_t inception_v3""".split()  # noqa: SIM905
TIMM = """resnet18 vit_tiny_patch16_224 deit_tiny_patch16_224 mixer_s32_224 convnext_atto
efficientnet_b0 mobilenetv3_small_050 swin_tiny_patch4_window7_224 poolformer_s12
coatnet_nano_rw_224 xcit_nano_12_p16_224 beit_base_patch16_224 gmlp_s16_224 levit_128s
edgenext_xx_small mobilevit_xxs crossvit_tiny_240 cait_xxs24_224 pit_ti_224
twins_pcpvt_small visformer_tiny nfnet_l0 res2net50_26w_4s hrnet_w18_small ghostnet_050
tinynet_e repvgg_a0 dpn48b vovnet39a cspresnet50""".split()  # noqa: SIM905
SIZES = {"inception_v3": 299, "crossvit_tiny_240": 240}


def networks() -> dict[str, Callable[[], nn.Module]]:
    import timm
    import torchvision

    def of_torchvision(name: str) -> nn.Module:
        slow = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        return getattr(torchvision.models, name)(weights=None, **slow)

    made: dict[str, Callable[[], nn.Module]] = {}
    made |= {f"torchvision {n}": lambda n=n: of_torchvision(n) for n in TORCHVISION}
    made |= {f"timm {n}": lambda n=n: timm.create_model(n, pretrained=False) for n in TIMM}
    return made


@torch.no_grad()
def look_at(name: str, net: nn.Module) -> tuple[list[str], float | None]:
    """What is said of a network, and the relative difference from torch.func.jvp."""
    size = SIZES.get(name.split()[1], 224)
    x, v = (torch.randn(1, 3, size, size, dtype=torch.float64) for _ in range(2))
    warned._WARNED.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, tangents = fastscore.jvps(net, x, v[None])
    said = [str(w.message) for w in caught if "fastscore.jvp" in str(w.message)]
    try:
        result: Any = torch.func.jvp(net, (x,), (v,))
    except NotImplementedError:
        return said, None
    return said, float((tangents[0] - result[1]).norm() / result[1].norm())


def main() -> None:
    left, differences = 0, []
    for name, make in networks().items():
        torch.manual_seed(0)
        said, difference = look_at(name, make().eval().double())
        left += bool(said)
        differences += [] if difference is None else [difference]
        print(f"{name:<40} {'; '.join(said) or 'fast'}  {difference}", flush=True)
    print(f"{left} of {len(networks())} leave the fast path; {len(differences)} compared, largest")
    print(f"relative difference {max(differences):.1e}; torch {torch.__version__}")


if __name__ == "__main__":
    main()
