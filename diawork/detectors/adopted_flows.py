"""FastFlow, CFlow and U-Flow of anomalib: how likely a backbone's maps are under a flow of the healthy ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diawork.base.checkpoints import Checkpointer
from diawork.base.loop import Progress
from diawork.data.images import Images
from diawork.detectors.adopted import Adopted, Aside, model_of, standing_in


class FastFlow(Adopted):
    """FastFlow (Yu et al., 2021): a two-dimensional flow on each scale."""

    name = "FastFlow"
    epochs = 500

    def _model(self) -> nn.Module:
        library = model_of("fastflow.torch_model")
        with standing_in(timm, create_model=lambda *_, **__: Aside(self.backbone.net)):
            return library.FastflowModel(self.size, "resnet18", pre_trained=False)

    def _loss(self, x: Tensor, step: int) -> Tensor:
        return model_of("fastflow.loss").FastflowLoss()(*self.net(x))


class UFlow(Adopted):
    """U-Flow (Tailanian et al., 2022): one flow up through the scales; its slow decay of the rate is left out."""

    name = "U-Flow"
    epochs = 200
    batch_size = 16

    def _model(self) -> nn.Module:
        library, parts = model_of("uflow.torch_model"), model_of("uflow.feature_extraction")

        def extractor(_: str, size: tuple[int, int]) -> nn.Module:
            return parts.LayerNormFeatureExtractor("resnet18", size, layers=range(len(self.backbone.strides)))

        with (
            standing_in(timm, create_model=lambda *_, **__: Aside(self.backbone.net)),
            standing_in(library, get_feature_extractor=extractor),
        ):
            return library.UflowModel(self.size, backbone="resnet18")

    def _loss(self, x: Tensor, step: int) -> Tensor:
        return model_of("uflow.loss").UFlowLoss()(*self.net(x))


class Likelihoods(nn.Module):
    """CFlow's map of a batch, each scale's highest likelihood being that of the healthy images and not the batch's.

    The library subtracts maxima over the images at hand, so that an image's score hangs on its company.
    """

    highest: Tensor  # (S,)

    def __init__(self, scales: int) -> None:
        super().__init__()
        self.register_buffer("highest", torch.full((scales,), torch.finfo(torch.float32).min))
        self.looking = False  # for the highest

    def forward(
        self, distribution: Sequence[Tensor], height: Sequence[int], width: Sequence[int], image_size: Sequence[int]
    ) -> Tensor:
        """Return maps (B, H, W): the number of scales less the sum of their likelihoods over the highest."""
        if self.looking:
            self.highest = torch.maximum(self.highest, torch.stack([d.max() for d in distribution]))
        scales = [
            (d - top).exp().reshape(-1, 1, h, w)
            for d, top, h, w in zip(distribution, self.highest, height, width, strict=True)
        ]
        return len(scales) - torch.cat(
            [F.interpolate(scale, list(image_size), mode="bilinear", align_corners=True) for scale in scales], 1
        ).sum(1)


class CFlow(Adopted):
    """CFlow (Gudovskiy et al., 2022): a flow of single positions, told where they lie."""

    name = "CFlow"
    strides = (8, 16, 32)
    epochs = 50
    batch_size = 16
    lr = 1e-4

    def _model(self) -> nn.Module:
        library = model_of("cflow.torch_model")
        scales = range(len(self.backbone.strides))
        with standing_in(timm, create_model=lambda *_, **__: Aside(self.backbone.net)):
            model = library.CflowModel("resnet18", tuple(scales), pre_trained=False)
        model.anomaly_map_generator = Likelihoods(len(scales))
        return model

    def _optimizers(self, lr: float) -> Mapping[str, torch.optim.Optimizer]:
        return {"optimizer": torch.optim.Adam(self._trained(), lr=lr)}

    def _learn(self, x: Images, checkpointer: Checkpointer, *, progress: Progress) -> None:
        super()._learn(x, checkpointer, progress=progress)
        self.net.anomaly_map_generator.looking = True
        for rows in self._prepared(x):
            self.net(rows)
        self.net.anomaly_map_generator.looking = False

    def _step(self, x: Tensor, step: int, optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, float]:
        """Take a step on every few positions ("fibres") of every scale, as the library does."""
        library, total, positions, optimizer = model_of("cflow.utils"), 0.0, 0, optimizers["optimizer"]
        with torch.no_grad():
            maps = self.backbone.net(x)
        for flow, f in zip(self.net.decoders, maps, strict=True):
            where = library.positional_encoding_2d(self.net.condition_vector, *f.shape[-2:]).to(f.device)
            where = where.flatten(1).T.repeat(len(f), 1)  # (B·h·w, P)
            rows = f.permute(0, 2, 3, 1).flatten(0, 2)  # (B·h·w, C)
            fibres = max(1, len(rows) // self.net.fiber_batch_size)
            for some in torch.randperm(len(rows), device=f.device).tensor_split(fibres):
                optimizer.zero_grad(set_to_none=True)
                z, log_jacobian = flow(rows[some], [where[some]])
                loss = -F.logsigmoid(library.get_logp(f.shape[1], z, log_jacobian) / f.shape[1])
                loss.mean().backward()
                optimizer.step()
                total, positions = total + float(loss.detach().sum()), positions + len(some)
        return {"loss": total / positions}
