from torch.utils.data.dataloader import DataLoader, get_worker_info  # noqa: F401
from torch.utils.data.dataset import IterableDataset  # noqa: F401
