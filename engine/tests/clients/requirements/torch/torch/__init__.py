"""As much of torch as guidellm uses: an iterator over prompts."""

from torch.utils import data  # noqa: F401


class Generator:
    def manual_seed(self, seed):
        return self
