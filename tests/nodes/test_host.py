"""nodes/host.py with a stand-in for ComfyUI's modules, and without any."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from antipure.methods.attacks.ensemble import CombinedDenoiser, VaeTargets
from antipure.methods.diffusion.batching import DEFAULT_MEMORY_BYTES
from antipure.methods.errors import AntiPureError
from antipure.methods.generators.stargan import StarGAN, StarGANNetwork
from antipure.methods.interruption import layers_of
from antipure.methods.metrics.encoders import Encoder
from antipure.nodes import host, progress
from antipure.nodes.encoders import borrowed_encoder
from antipure.nodes.progress import Progress


def test_without_comfyui_everything_answers():
    assert not host.inside_comfyui()
    host.check_interrupted()
    with Progress("test") as report:
        report(1, 2, torch.zeros(1, 3, 4, 4), torch.tensor(0.5))


def test_the_host_manages_the_weights(comfyui, tiny):
    host.manage(tiny)
    try:
        host.ready(tiny)
        ((patchers, options),) = comfyui.loaded
        assert patchers == [tiny.host_patcher]
        assert options == {"force_full_load": True}
        managed = {id(p) for p in patchers[0].model.parameters()}
        assert managed == {id(p) for p in tiny.unet.parameters()}
    finally:
        del tiny.host_patcher, tiny.allowance


@pytest.mark.parametrize("kind", ["mps", "xpu", "privateuseone"])
def test_an_accelerator_gives_half_of_what_the_host_calls_free(comfyui, monkeypatch, kind):
    """Apple's, Intel's and DirectML's devices: else they would get the CPU's leanest plan."""
    asked = []

    def free(device):
        asked.append(device)
        return 8 * 2**30

    monkeypatch.setattr(sys.modules["comfy.model_management"], "get_free_memory", free, raising=False)
    borrowing = types.SimpleNamespace(device=torch.device(kind), borrowed_bytes=2**30, memory_bytes=5)
    assert host.memory_allowance(borrowing) == 4 * 2**30
    assert asked == [torch.device(kind)]
    monkeypatch.setattr(sys.modules["comfy.model_management"], "get_free_memory", lambda device: 1, raising=False)
    assert host.memory_allowance(borrowing) == DEFAULT_MEMORY_BYTES


def patcher(model: object, uuid: int = 0, dynamic: bool = False, **objects) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        model=model,
        patches_uuid=uuid,
        object_patches=objects,
        load_device=torch.device("meta"),
        is_dynamic=lambda: dynamic,
        get_free_memory=lambda device: 10 * 2**30,
        partially_unload=lambda device, size: None,
        offload_device=torch.device("cpu"),
    )


def test_one_network_in_two_versions_is_refused(comfyui):
    model, other, sampling = torch.nn.Identity(), torch.nn.Identity(), object()
    same = patcher(model, 1, model_sampling=sampling)
    host._check_versions([same, patcher(model, 1, model_sampling=sampling), patcher(other, 2)])
    for changed in (patcher(model, 2, model_sampling=sampling), patcher(model, 1, model_sampling=object())):
        with pytest.raises(AntiPureError, match="different LoRAs"):
            host._check_versions([same, changed])


def test_room_is_made_for_weights_that_will_be_held_under_dynamic_vram(comfyui, monkeypatch):
    """ComfyUI makes room for paged weights as they come; these come at once, each network counted once."""
    freed, management = [], sys.modules["comfy.model_management"]
    monkeypatch.setattr(management, "LoadedModel", lambda patcher: patcher, raising=False)
    monkeypatch.setattr(
        management, "free_memory", lambda *a, keep_loaded: freed.append((*a, keep_loaded)), raising=False
    )
    model = torch.nn.Linear(4, 4)
    model.weight_comfy_model_dtype = torch.float16
    given_up = []
    both = [patcher(model, dynamic=True), patcher(model, dynamic=True)]
    for one in both:
        one.partially_unload = lambda device, size: given_up.append(len(freed))
    host._make_room([], 100.0)
    host._make_room(both, 100.0)
    assert freed == [(16 * 2 + 4 * 4 + 100.0, torch.device("meta"), both)]
    assert given_up == [0, 0], "its own pages are no reason to send others off"


def test_under_dynamic_vram_the_host_counts_what_it_would_give_up(comfyui):
    target = types.SimpleNamespace(device=torch.device("meta"), shared_patchers=(patcher(None, dynamic=True),))
    assert host.memory_allowance(target) == 5 * 2**30


def test_on_the_cpu_a_borrowed_model_takes_a_share_of_its_size_and_others_their_own(comfyui):
    cpu = torch.device("cpu")
    assert host.memory_allowance(types.SimpleNamespace(device=cpu, borrowed_bytes=4000, memory_bytes=5)) == 100
    assert host.memory_allowance(types.SimpleNamespace(device=cpu, memory_bytes=5)) == 5


def test_what_is_moved_within_a_prompt_still_serves_gradients(make_tiny, monkeypatch):
    """The prompt runs in inference mode, and what torch makes there never takes part in a backward pass."""
    monkeypatch.setattr(host, "device", lambda: torch.device("meta"))
    with torch.inference_mode():
        moved = host.manage(make_tiny())
    for tensor in (*moved.unet.parameters(), moved.alphas_cumprod):
        assert tensor.is_meta
        assert not tensor.is_inference()


def tensors_of(owner) -> list[torch.Tensor]:
    """Every tensor that a move takes along."""
    network = owner.module if isinstance(owner, Encoder) else owner.network
    own = [value for value in vars(owner).values() if isinstance(value, torch.Tensor)]
    return [*network.parameters(), *network.buffers(), *own]


def moved_denoiser(make_tiny):
    return host.manage(make_tiny())


def moved_generator(make_tiny):
    network = StarGANNetwork(conv_dim=4, n_labels=2, blocks=1)
    return host.manage(StarGAN(network, {"dark": (1.0, 0.0), "light": (0.0, 1.0)}, size=32))


def moved_encoder(make_tiny):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2))
    with borrowed_encoder(Encoder("tiny", module, module=module)) as encoder:
        return encoder


@pytest.mark.parametrize("move", [moved_denoiser, moved_generator, moved_encoder])
@pytest.mark.parametrize("inside", [False, True], ids=["outside ComfyUI", "inside ComfyUI"])
def test_what_is_moved_in_inference_mode_still_carries_gradients(move, inside, make_tiny, request, monkeypatch):
    """Prompts run in inference mode; "meta" stands for a GPU: a move there makes new tensors on any machine."""
    if inside:
        request.getfixturevalue("comfyui")
        monkeypatch.setattr(sys.modules["comfy.model_management"], "get_torch_device", lambda: torch.device("meta"))
    else:
        monkeypatch.setattr(host, "device", lambda: torch.device("meta"))
    with torch.inference_mode():
        owner = move(make_tiny)
        if inside and move is moved_denoiser:
            host.ready(owner)
        elif inside and move is moved_generator:
            host.ready_network(owner)
    tensors = tensors_of(owner)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert not any(tensor.is_inference() for tensor in tensors)


def test_progress_reaches_the_bar_with_a_preview_at_the_end(comfyui):
    with Progress("test") as report:
        for step in range(1, 4):
            report(step, 3, torch.rand(1, 3, 8, 8), torch.tensor(0.1))
    (bar,) = comfyui.bars
    assert [call[:2] for call in bar.calls] == [(1, 3), (2, 3), (3, 3)]
    kind, image, _ = bar.calls[-1][2]
    assert kind == "JPEG"
    assert image.size == (8, 8)


def test_loss_and_remaining_time_stand_on_the_node(comfyui, monkeypatch):
    clock, texts = [0.0], []
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(host, "show_text", lambda text, node_id: texts.append((text, node_id)))
    with Progress("test", "7") as report:
        for step in range(1, 41):
            clock[0] += 0.5
            report(step, 40, None, torch.tensor(0.25))
    assert texts[0] == ("step 3 of 40\nloss 0.2500\n19 s left", "7")
    assert len(texts) == 13, "not more than one a second"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (59, "59 s"), (61, "2 min"), (3601, "1 h 1 min"), (7500, "2 h 5 min")]
)
def test_durations_in_words(seconds, words):
    assert progress.duration(seconds) == words


def test_cancel_stops_at_the_next_step_and_leaves_the_denoiser_whole(comfyui, tiny, monkeypatch):
    from antipure import NODE_CLASS_MAPPINGS

    before = {k: v.clone() for k, v in tiny.unet.state_dict().items()}
    steps = []
    original = Progress.__call__

    class Counting(Progress):
        def __call__(self, done, *rest):
            comfyui.interrupt = done == 3
            steps.append(done)
            original(self, done, *rest)

    monkeypatch.setattr("antipure.nodes.protect.Progress", Counting)
    with torch.inference_mode(), pytest.raises(comfyui.interrupted):
        NODE_CLASS_MAPPINGS["AntiPureProtect"]().protect(torch.rand(1, 20, 20, 3), tiny, "strong", 8, 100, 0)
    assert steps == [1, 2, 3]
    assert all(torch.equal(before[k], v) for k, v in tiny.unet.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in tiny.unet.parameters())


@pytest.fixture
def server(comfyui, monkeypatch):
    """ComfyUI's server: what it sent, and to whom. It tells everybody where no client is named."""
    sent = []
    instance = types.SimpleNamespace(client_id="mine", send_progress_text=lambda *message: sent.append(message))
    module = types.ModuleType("server")
    module.PromptServer = types.SimpleNamespace(instance=instance)
    monkeypatch.setitem(sys.modules, "server", module)
    instance.sent = sent
    return instance


def test_texts_go_to_the_client_that_asked_and_to_nobody_else(server):
    host.show_text("a", "7")
    server.client_id = None  # a run that no page waits for
    host.show_text("b", "7")
    host.show_text("c", None)
    assert server.sent == [("a", "7", "mine")]


def test_work_that_has_begun_shows_so_at_once(comfyui, server):
    with Progress("test", "7") as report:
        report.begin(torch.rand(1, 3, 8, 8))
    ((done, _, preview),) = comfyui.bars[0].calls
    assert done == 0
    assert preview[1].size == (8, 8)
    assert server.sent == [("starting", "7", "mine")]


def test_the_time_of_a_long_first_step_is_told_within_it(comfyui, server, make_tiny, monkeypatch):
    """Two of the eight forwards and no backward: 2 of 24, at one second a layer."""
    tiny = make_tiny()
    clock, layers = [0.0], len(layers_of([tiny.unet]))
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(host, "check_interrupted", lambda: clock.__setitem__(0, clock[0] + 1))
    tiny.memory_bytes = 1
    with tiny.session() as batching, Progress("test", "7", host.networks_of(tiny), batching) as report:
        report.begin(torch.rand(1, 3, 8, 8), 10)
        list(batching.batches(4, 16, 16, forwards=2))
        with torch.no_grad():
            for _ in range(2):
                tiny.predict_noise(torch.rand(1, 3, 16, 16), torch.tensor([3]))
    step, left = server.sent[-1][0].split("\n")
    assert step == "step 0 of 10"
    assert left == progress.duration(24 * layers * 10 - clock[0]) + " left"


@pytest.mark.parametrize(("raised", "word"), [("interrupted", "cancelled"), ("error", "failed")])
def test_what_was_left_says_so_on_the_node(comfyui, server, raised, word):
    kind = comfyui.interrupted if raised == "interrupted" else ValueError

    def leave() -> None:
        with Progress("test", "7") as report:
            report(2.5, 4)
            raise kind

    with pytest.raises(kind):
        leave()
    assert server.sent[-1] == (f"{word}\nstep 2 of 4", "7", "mine")


def test_a_cancel_is_heard_within_a_network_call(comfyui, server, tiny):
    x = torch.rand(1, 3, 16, 16).requires_grad_()
    with Progress("test", "7", host.networks_of(tiny, None)):
        loss = tiny.predict_noise(x, torch.tensor([3])).square().sum()
        comfyui.interrupt = True
        with pytest.raises(comfyui.interrupted):
            loss.backward()
    assert x.grad is None
    with pytest.raises(comfyui.interrupted), Progress("test", "7", host.networks_of(tiny)):
        tiny.predict_noise(x, torch.tensor([3]))
    assert tiny.predict_noise(x, torch.tensor([3])).requires_grad, "nothing is left on the network"


def test_the_networks_of_every_kind_of_model(make_tiny, comfyui):
    first, second, vae = make_tiny(), make_tiny(), types.SimpleNamespace(network=torch.nn.Linear(2, 2))
    patchers = [types.SimpleNamespace(model=torch.nn.Linear(2, 2)) for _ in range(2)]
    borrowed = types.SimpleNamespace(shared_patchers=tuple(patchers))
    compiled = types.SimpleNamespace(network=torch.nn.Linear(2, 2), compiled=True)
    both = CombinedDenoiser((first, VaeTargets((vae, borrowed)), second))
    wanted = [first.unet, vae.network, *(patcher.model for patcher in patchers), second.unet]
    found = host.networks_of(both, None, compiled, first)
    assert [id(network) for network in found] == [id(network) for network in wanted]
