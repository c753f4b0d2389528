"""RD4AD, Dinomaly and GANomaly of anomalib: networks that learn to rebuild what is healthy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import timm
import torch
from torch import Tensor, nn

from diawork.base.errors import UsageError
from diawork.base.loop import descend
from diawork.detectors.adopted import Adopted, Aside, model_of, standing_in
from diawork.detectors.backbones import Transformer, resized

RESNETS = {(64, 128, 256): "resnet18", (256, 512, 1024): "wide_resnet50_2"}  # channels → whose decoder fits
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])  # mean and standard deviation


class RD4AD(Adopted):
    """The library's RD4AD, a cross-check of ours; its decoders mirror ResNets alone."""

    name = "RD4AD of anomalib"
    epochs = 200
    batch_size = 16
    lr = 0.005

    def _model(self) -> nn.Module:
        library, decoder = model_of("reverse_distillation.torch_model"), RESNETS.get(tuple(self.backbone.channels))
        if decoder is None:
            what = f"anomalib's RD4AD mirrors ResNets at strides 4, 8 and 16, not {self.cfg.backbone.name}."
            raise UsageError(what, hint="Set backbone.name to resnet18 or wide_resnet50_2; ours mirrors any backbone.")
        mode = model_of("reverse_distillation.anomaly_map").AnomalyMapGenerationMode.ADD
        with standing_in(timm, create_model=lambda *_, **__: Aside(self.backbone.net)):
            model = library.ReverseDistillationModel(decoder, self.size, (0, 1, 2), mode, pre_trained=False)
        for unused in (model.bottleneck.conv4, model.bottleneck.bn4):
            unused.requires_grad_(False)
        return model

    def _optimizers(self, lr: float) -> Mapping[str, torch.optim.Optimizer]:
        return {"optimizer": torch.optim.Adam(self._trained(), lr=lr, betas=(0.5, 0.99))}

    def _loss(self, x: Tensor, step: int) -> Tensor:
        return model_of("reverse_distillation.loss").ReverseDistillationLoss()(*self.net(x))


class Dinomaly(Adopted):
    """Dinomaly (Guo et al., CVPR 2025): a loose decoder rebuilds the tokens of a frozen DINOv2."""

    name = "Dinomaly"
    steps_in_all = 5000
    batch_size = 16
    lr = 2e-3

    def _looked_through(self) -> Transformer:
        return Transformer(self.cfg.backbone, seed=self.cfg.seed)

    def _model(self) -> nn.Module:
        library = model_of("dinomaly.torch_model")
        with standing_in(timm, create_model=lambda *_, **__: Aside(self.backbone.net)):
            model = library.DinomalyModel(encoder_name=self.cfg.backbone.name)
        model.encoder.parameters = self.backbone.parameters  # whose number format it asks for
        for module in [*model.bottleneck.modules(), *model.decoder.modules()]:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.01, a=-0.03, b=0.03)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        return model

    def _optimizers(self, lr: float) -> Mapping[str, torch.optim.Optimizer]:
        kind = model_of("dinomaly.components").StableAdamW
        return {"optimizer": kind(self._trained(), lr=lr, weight_decay=1e-4, amsgrad=True)}

    def _rate(self, step: int, steps: int) -> float:
        """Return a rise over 100 steps, or a tenth of fewer, and half a cosine down to a tenth."""
        rise = min(100, max(1, steps // 10))
        if step < rise:
            return step / rise
        return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    def _step(self, x: Tensor, step: int, optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, float]:
        optimizer = optimizers["optimizer"]
        optimizer.zero_grad(set_to_none=True)
        loss = self.net(x, global_step=step)
        loss.backward()
        nn.utils.clip_grad_norm_(self._trained(), 0.1)
        optimizer.step()
        return {"loss": float(loss.detach())}


class OwnNetworks(Adopted):
    """A model that looks at pixels itself: there is no backbone."""

    requires_weights = False

    def _prepare(self) -> None:
        self._make()

    def _frozen(self) -> dict[str, str]:
        return {}

    @property
    def pretrained(self) -> bool:
        """Whether a network has learnt elsewhere."""
        return False

    def _seen(self, x: Tensor) -> Tensor:
        return resized(self.compute.to(x), self.cfg.backbone.image_size).expand(-1, 3, -1, -1)


class GANomaly(OwnNetworks):
    """GANomaly (Akcay et al., 2018): the distance between an image's code and its reconstruction's; no map."""

    name = "GANomaly"
    lr = 2e-4
    has_map = False

    def _model(self) -> nn.Module:
        sizes = {"num_input_channels": 3, "n_features": 64, "latent_vec_size": 100}
        return model_of("ganomaly.torch_model").GanomalyModel(self.size, **sizes)

    def _seen(self, x: Tensor) -> Tensor:
        mean, std = self.compute.to(IMAGENET[:, :, None, None])
        return (super()._seen(x) - mean) / std

    def _optimizers(self, lr: float) -> Mapping[str, torch.optim.Optimizer]:
        kind = partial(torch.optim.Adam, lr=lr, betas=(0.5, 0.999))
        parts = {"critic": self.net.discriminator, "generator": self.net.generator}
        return {name: kind(part.parameters()) for name, part in parts.items()}

    def _step(self, x: Tensor, step: int, optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, float]:
        losses, critic = model_of("ganomaly.loss"), self.net.discriminator
        real, fake, code, code_again = self.net(x)
        judged, _ = critic(real)
        made = losses.GeneratorLoss()(code, code_again, real, fake, judged, critic(fake)[0])
        optimizers["generator"].zero_grad(set_to_none=True)
        made.backward(retain_graph=True)
        optimizers["generator"].step()
        told = descend(losses.DiscriminatorLoss()(judged, critic(fake.detach())[0]), optimizers["critic"])
        return {"loss": float(made.detach()), "critic": told["loss"]}
