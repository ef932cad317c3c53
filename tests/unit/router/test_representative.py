from __future__ import annotations

import torch

from expertweaver.router.representative import representatives


def test_the_row_nearest_the_mean_speaks_and_ties_go_to_the_lower_id() -> None:
    features = torch.tensor([[0.0], [9.0], [4.0], [1.0], [5.0], [3.0]])
    clusters = [torch.tensor([0, 2, 4]), torch.tensor([1, 3]), torch.tensor([5])]  # means 3, 5 (a tie) and 3
    assert representatives(features, clusters).tolist() == [2, 1, 5]
