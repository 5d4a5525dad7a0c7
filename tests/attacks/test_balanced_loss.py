"""Gradients of several losses brought to one size: known gradients, streams, memory, and the loop that follows them."""

from __future__ import annotations

import pytest
import torch
from antipure.methods.attacks.balanced_loss import BalancedLoss, ShapedLoss, mean_size
from antipure.methods.attacks.loss import FunctionLoss, Loss
from antipure.methods.attacks.pgd import pgd
from antipure.methods.attacks.settings import AttackSettings
from antipure.methods.errors import AntiPureError


def stream(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def leaf(size: int = 6) -> torch.Tensor:
    return torch.rand(1, 3, size, size, generator=stream(0)).requires_grad_()


def linear(weights: torch.Tensor) -> Loss:
    return FunctionLoss(lambda pixels, generator: [(pixels * weights).sum()])


def weights(seed: int, scale: float) -> torch.Tensor:
    return scale * torch.randn(1, 3, 6, 6, generator=stream(seed))


def test_each_counts_by_its_weight_and_not_by_its_scale():
    a, b = weights(1, 1e6), weights(2, 1e-6)
    value, gradient = BalancedLoss([linear(a), linear(b)], [2.0, 0.5]).value_and_gradient(leaf(), stream())
    torch.testing.assert_close(gradient, 2 * a / a.abs().mean() + 0.5 * b / b.abs().mean())
    pixels = leaf().detach()
    torch.testing.assert_close(value, 2 * (pixels * a).sum() + 0.5 * (pixels * b).sum())


def test_a_loss_that_sees_a_part_counts_there_as_much_as_one_that_sees_all():
    whole, part = weights(1, 1.0), weights(2, 1.0)
    part[..., 2:] = 0
    _, gradient = BalancedLoss([linear(whole), linear(part)], [1, 1]).value_and_gradient(leaf(), stream())
    seen = part[..., :2]
    torch.testing.assert_close(
        gradient[..., :2], whole[..., :2] / whole.abs().mean() + seen / seen.abs().mean(), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(gradient[..., 2:], whole[..., 2:] / whole.abs().mean())


def test_a_gradient_of_zero_stays_zero_and_what_is_not_finite_is_found():
    assert float(mean_size(torch.zeros(2, 2))) == 1
    balanced = BalancedLoss([linear(torch.zeros(1, 3, 6, 6)), linear(weights(1, 1.0))], [1, 1])
    assert torch.isfinite(balanced.value_and_gradient(leaf(), stream())[1]).all()
    broken = weights(1, 1.0)
    broken[0, 0, 0, 0] = float("nan")
    picture = torch.full((1, 3, 6, 6), 0.5)
    with pytest.raises(AntiPureError, match="not finite"):
        pgd(picture, lambda clean: BalancedLoss([linear(broken), linear(broken)], [1, 1]), AttackSettings(8, 2))


def test_members_have_streams_of_their_own_and_the_same_in_preparing():
    drawn: dict[str, list[float]] = {"a": [], "b": []}

    class Drawing(Loss):
        def __init__(self, name: str):
            self.name, self.count, self.left = name, 0, 2

        def prepare(self, pixels, generator):
            drawn[self.name].append(float(torch.rand((), generator=generator)))

        def terms(self, pixels, generator):
            drawn[self.name].append(float(torch.rand((), generator=generator)))
            yield pixels.sum()

        def stepped(self):
            self.count += 1

        def shrink(self):
            self.left -= 1
            return self.left > 0

    a, b = Drawing("a"), Drawing("b")
    loss = BalancedLoss([a, b], [1, 1])
    loss.prepare(leaf(), stream())
    loss.value_and_gradient(leaf(), stream())
    loss.stepped()
    assert drawn["a"][0] == drawn["a"][1] != drawn["b"][0] == drawn["b"][1]
    assert (a.count, b.count) == (1, 1)
    assert loss.shrink()
    assert not loss.shrink()
    assert (a.left, b.left) == (0, 0)  # nobody knows whose batch was too large


def test_a_shaped_loss_is_the_loss_with_another_gradient():
    a = weights(1, 1.0)
    value, gradient = ShapedLoss(linear(a), lambda g: -3 * g).value_and_gradient(leaf(), stream())
    torch.testing.assert_close(gradient, -3 * a)
    torch.testing.assert_close(value, (leaf().detach() * a).sum())


def test_a_loss_without_the_picture_in_it_is_refused():
    constant = FunctionLoss(lambda pixels, generator: [torch.ones(())])
    with pytest.raises(AntiPureError, match="does not depend on the picture"):
        BalancedLoss([constant], [1]).value_and_gradient(leaf(), stream())


class Windowed(Loss):
    """Sees one half of the picture in the first step, the other in the second, then nothing."""

    def __init__(self):
        self.step, self.weights = 0, weights(5, 3.0)

    def seen(self) -> torch.Tensor:
        mask = torch.zeros(1, 3, 6, 6)
        if self.step < 2:
            mask[..., 3 * self.step : 3 * self.step + 3] = 1
        return self.weights * mask

    def terms(self, pixels, generator):
        yield (pixels * self.seen()).sum()

    def stepped(self):
        self.step += 1


def test_where_a_loss_did_not_look_its_last_gradient_counts_less_with_every_step():
    balanced = BalancedLoss([Windowed()], [1.0], memory=0.5)
    halves = [weights(5, 3.0)[..., :3], weights(5, 3.0)[..., 3:]]
    first, second = (half / half.abs().mean() for half in halves)
    expected = [
        torch.cat([first, torch.zeros_like(first)], -1),
        torch.cat([0.5 * first, second], -1),
        torch.cat([0.25 * first, 0.5 * second], -1),
    ]
    for wanted in expected:
        _, gradient = balanced.value_and_gradient(leaf(), stream())
        torch.testing.assert_close(gradient, wanted / mean_size(wanted))
        again = balanced.value_and_gradient(leaf(), stream())[1]  # as after running out of memory: the same step
        torch.testing.assert_close(again, gradient)
        balanced.stepped()


def test_without_memory_what_is_not_seen_does_not_move():
    balanced = BalancedLoss([Windowed()], [1.0])
    for _ in range(2):
        _, gradient = balanced.value_and_gradient(leaf(), stream())
        balanced.stepped()
    assert not gradient[..., :3].any()
    assert gradient[..., 3:].all()
