"""Our Adam against torch's, and what it does with rows."""

from __future__ import annotations

import pytest
import torch

from splatpipe.splatting.adam import Adam

SHAPES = {"means": (3,), "opacities": (), "shN": (15, 3)}
RATES = {"means": 1e-3, "opacities": 5e-2, "shN": 2e-3}


def params(n: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(n)
    return {name: torch.randn(n, *shape, generator=random).requires_grad_() for name, shape in SHAPES.items()}


def set_gradients(leaves: dict[str, torch.Tensor], step: int, bands: int = 15) -> None:
    random = torch.Generator().manual_seed(step)
    for leaf in leaves.values():
        # over ten orders of magnitude, as in training
        leaf.grad = torch.randn(leaf.shape, generator=random) * 10 ** (-10 * torch.rand(leaf.shape, generator=random))
    leaves["shN"].grad[:, bands:] = 0


@pytest.mark.parametrize("n", [1, 7, 1000, 20_000])
def test_dense_steps_equal_torch(n):
    ours, theirs = params(n), params(n)
    optimizer = Adam(ours, RATES)
    reference = torch.optim.Adam([{"params": [theirs[k]], "lr": RATES[k]} for k in SHAPES], eps=1e-15)
    for step in range(6):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.lrs["means"] = reference.param_groups[0]["lr"] = 1e-3 * 0.9**step
        optimizer.step()
        reference.step()
    for name in SHAPES:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)
        for key, moment in optimizer.state[name].items():
            rounding = 1e-7 if key == "exp_avg" else 1e-20  # a mean of both signs may cancel, a mean of squares not
            torch.testing.assert_close(moment, reference.state[theirs[name]][key], rtol=1e-5, atol=rounding)


def test_bands_without_a_gradient_so_far_may_be_left_out():
    ours, whole = params(500), params(500)
    left_out, all_bands = Adam(ours, RATES), Adam(whole, RATES)
    for step, bands in enumerate([0, 3, 3, 8, 15, 15]):
        for leaves in (ours, whole):
            set_gradients(leaves, step, bands)
        left_out.step(active={"shN": bands})
        all_bands.step()
    for name in SHAPES:
        torch.testing.assert_close(ours[name], whole[name], rtol=1e-6, atol=1e-7)


def test_unseen_rows_keep_their_parameters_and_moments():
    leaves = params(300)
    optimizer = Adam(leaves, RATES)
    set_gradients(leaves, 0)
    optimizer.step()
    visible = torch.arange(300) % 3 == 0
    before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    moments = {name: {k: v.clone() for k, v in optimizer.state[name].items()} for name in leaves}
    set_gradients(leaves, 1)
    optimizer.step(visible)
    dense = Adam({name: value.clone().requires_grad_() for name, value in before.items()}, RATES)
    dense.load_state_dict({"steps": 1, "lrs": RATES, "state": moments})
    set_gradients(dense.params, 1)
    dense.step()
    for name in SHAPES:
        assert torch.equal(leaves[name][~visible], before[name][~visible])
        torch.testing.assert_close(leaves[name][visible], dense.params[name][visible], rtol=1e-6, atol=1e-7)
        for key, moment in optimizer.state[name].items():
            assert torch.equal(moment[~visible], moments[name][key][~visible])
            torch.testing.assert_close(moment[visible], dense.state[name][key][visible], rtol=1e-6, atol=0)


def test_parameter_without_gradient_rests():
    leaves = params(10)
    optimizer = Adam(leaves, RATES)
    before = leaves["shN"].detach().clone()
    leaves["means"].grad = torch.ones(10, 3)
    optimizer.step()
    assert torch.equal(leaves["shN"], before)
    assert optimizer.steps == 1


def test_zeroed_and_appended_rows_start_afresh():
    leaves = params(10)
    optimizer = Adam(leaves, RATES)
    set_gradients(leaves, 0)
    optimizer.step()
    kept = optimizer.state["means"]["exp_avg"].clone()
    optimizer.zero_rows(torch.tensor([2, 5]))
    for name in list(leaves):
        leaves[name] = torch.cat([leaves[name].detach(), leaves[name].detach()[:4]]).requires_grad_()
    optimizer.append_zero_rows(4)
    moment = optimizer.state["means"]["exp_avg"]
    assert not moment[[2, 5]].any() and not moment[10:].any()
    assert torch.equal(moment[[0, 1, 3, 4, 6, 7, 8, 9]], kept[[0, 1, 3, 4, 6, 7, 8, 9]])
    set_gradients(leaves, 1)
    before = leaves["opacities"].detach().clone()
    optimizer.step()
    assert (leaves["opacities"] != before).all()  # the new tensors are the ones that move


def test_saved_state_continues_to_the_same_numbers():
    straight, resumed = params(50), params(50)
    one, two = Adam(straight, RATES), Adam(resumed, RATES)
    for step in range(3):
        set_gradients(straight, step)
        set_gradients(resumed, step)
        one.step()
        two.step()
    three = Adam(resumed, RATES)
    three.load_state_dict(two.state_dict())
    for leaves, optimizer in ((straight, one), (resumed, three)):
        set_gradients(leaves, 9)
        optimizer.step()
    assert all(torch.equal(straight[name], resumed[name]) for name in SHAPES)


def test_state_of_another_size_is_refused():
    optimizer = Adam(params(5), RATES)
    with pytest.raises(ValueError, match=r"exp_avg of means must have shape \(5, 3\), found \(6, 3\)"):
        optimizer.load_state_dict(Adam(params(6), RATES).state_dict())


def test_moments_that_fade_end_at_zero():
    leaves = params(16)
    optimizer = Adam(leaves, RATES)
    for step in range(900):
        set_gradients(leaves, 0) if step == 0 else [leaf.grad.zero_() for leaf in leaves.values()]
        optimizer.step()
    assert not optimizer.state["means"]["exp_avg"].any()
