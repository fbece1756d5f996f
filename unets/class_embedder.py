"""The class embedder of LDM-4-G: one token for each class, and one for none."""

from __future__ import annotations

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class ClassEmbedder(ModelMixin, ConfigMixin):
    """A table of embeddings. The last class is the unconditional one, which classifier-free guidance needs."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, num_classes: int = 1001, embedding_dim: int = 512) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, embedding_dim)

    def forward(self, class_labels: Tensor) -> Tensor:
        """Class labels (B,) to context for cross-attention (B, 1, embedding_dim)."""
        return self.embedding(class_labels)[:, None]
