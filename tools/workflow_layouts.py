"""Where the nodes of the shipped workflows stand, in which frames, and what the notes say; for make_workflows."""

from __future__ import annotations

from dataclasses import dataclass

Box = tuple[int, int, int, int]  # x, y, width, height; the 30-px title bar of a node stands above y

BLUE, RED, GREEN, GREY, VIOLET = "#5b9bc4", "#c9736b", "#7fae72", "#a0a0a0", "#9a86c4"


@dataclass(frozen=True)
class Group:
    """A titled frame around nodes, named by their ids in the API file."""

    title: str
    colour: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Note:
    """A MarkdownNote."""

    title: str
    box: Box
    text: str


@dataclass(frozen=True)
class Layout:
    """Where the nodes of one workflow stand."""

    boxes: dict[str, Box]
    groups: tuple[Group, ...]
    notes: tuple[Note, ...]


DENOISERS = (
    "**Denoisers.** *bundled* is a small 64-px model that ships with this pack. Put your own (an ADM checkpoint or a "
    "diffusers folder) into **models/antipure** and press R."
)
LIMITS = (
    "**Limits.** A protection can be bypassed: whoever has the picture can wait for better tools, JPEG followed by "
    "resizing undoes much of most protections, and perturbations can be detected. Claim no more than you measured."
)

SD_CHECKPOINT = (
    "**Checkpoint.** Any Stable Diffusion 1.5 or SDXL checkpoint in **models/checkpoints**; choose yours in *Load "
    "Checkpoint*.\n\n"
)

# Picture and denoiser, the one node that works, what it gives: protect and purify alike.
ONE_PICTURE = {
    "1": (400, 80, 300, 380),
    "2": (400, 520, 300, 120),
    "3": (760, 80, 360, 560),
    "4": (1180, 80, 420, 380),
    "5": (1180, 520, 420, 380),
}

LAYOUTS = {
    "protect": Layout(
        boxes=ONE_PICTURE,
        groups=(
            Group("Picture and denoiser", GREY, ("1", "2")),
            Group("Protect", BLUE, ("3",)),
            Group("Result", GREEN, ("4", "5")),
        ),
        notes=(
            Note(
                "Protect a picture",
                (0, 80, 340, 380),
                "Adds a perturbation of at most *levels* 8-bit levels per pixel, made so that a diffusion model that "
                "purifies the picture distorts its fine structure.\n\n"
                "**Reading it.** The Protect node reports the largest change, PSNR and SSIM: what the protection "
                "costs. Fewer *levels* are harder to see and protect less. *Perturbation* shows the change around "
                "mid-grey.\n\n"
                "**Saving.** Keep the PNG as it is, at its own size. What survives a purifier is measured by the "
                "workflow *protect_and_purify*.\n\n" + DENOISERS + "\n\n" + LIMITS,
            ),
        ),
    ),
    "purify": Layout(
        boxes=ONE_PICTURE,
        groups=(
            Group("Picture and denoiser", GREY, ("1", "2")),
            Group("Purify", RED, ("3",)),
            Group("Result", GREEN, ("4", "5")),
        ),
        notes=(
            Note(
                "Purify a picture",
                (0, 80, 340, 380),
                "Noises the picture a little and lets a diffusion model clean it again. It is here to measure "
                "protections: what does a purifier leave of yours?\n\n"
                "**Reading it.** *Residual* shows what purification changed, around mid-grey; black and white are ±16 "
                "levels. Purify the unprotected picture with the same seed, too, and compare the two: "
                "*protect_and_purify* does so.\n\n"
                "**Settings.** *gridpure*: timestep 10, 10 to 40 iterations. *diffpure*: timestep 100 to 150, "
                "1 iteration.\n\n"
                + DENOISERS
                + "\n\n**Limits.** Another purifier or another model gives other numbers.",
            ),
        ),
    ),
    "measure": Layout(
        boxes={
            "1": (400, 80, 300, 330),
            "2": (400, 460, 300, 330),
            "3": (760, 80, 340, 330),
            "4": (760, 460, 340, 120),
            "5": (1160, 80, 480, 710),
        },
        groups=(
            Group("Two pictures of equal size", GREY, ("1", "2")),
            Group("Measure", GREEN, ("3", "4")),
            Group("Inspection sheet", GREEN, ("5",)),
        ),
        notes=(
            Note(
                "Compare two pictures",
                (0, 80, 340, 400),
                "Load the original as *Reference* and its protected version as *Picture*. Both load the same example "
                "at first, so the first run shows no difference.\n\n"
                "**Cost.** PSNR (dB) and SSIM: higher is closer to the reference. A full use of 8 levels costs about "
                "31 dB; above 40 dB a change is hard to see.\n\n"
                "**Survival.** Load the *purified original* and the *purified protected* picture instead. Structural "
                "distortion near 0 means that no structure of the protection is left; the higher, the more the "
                "purifier got wrong. A detail ratio below 1 means that fine detail was wiped out.\n\n"
                "**Controls.** Compare with *random*, *shift* and *blocks* of AntiPure Protect at equal levels: only "
                "what exceeds them counts.\n\n"
                "**Limits.** The numbers hold for this picture and this purifier. They do not say what a model "
                "fine-tuned on it will do.",
            ),
        ),
    ),
    "protect_and_purify": Layout(
        boxes={
            "1": (0, 450, 340, 360),
            "2": (0, 870, 340, 120),
            "3": (400, 80, 360, 520),
            "4": (400, 660, 360, 280),
            "11": (400, 1000, 360, 280),
            "5": (820, 80, 320, 450),
            "6": (820, 590, 320, 450),
            "7": (1200, 80, 420, 270),
            "8": (1200, 410, 420, 270),
            "9": (1200, 740, 420, 120),
            "10": (1680, 80, 760, 780),
        },
        groups=(
            Group("1 · Picture and denoiser", GREY, ("1", "2")),
            Group("2 · Protect", BLUE, ("3", "4", "11")),
            Group("3 · Purify both, same noise", RED, ("5", "6")),
            Group("4 · Measure", GREEN, ("7", "8", "9")),
            Group("5 · Inspection sheet", GREEN, ("10",)),
        ),
        notes=(
            Note(
                "Protect, purify, measure",
                (0, 80, 340, 240),
                "1. Protects the picture with at most *levels* 8-bit levels per pixel.\n"
                "2. Purifies the protected picture, and the original with the same noise.\n"
                "3. Measures what the protection costs and what survives.\n\n"
                "It is slow on a CPU: try a face crop of 128 to 256 pixels and 40 steps first.\n\n" + DENOISERS,
            ),
            Note(
                "Reading the numbers",
                (1200, 940, 420, 300),
                "**Cost** (protected against original): PSNR and SSIM, higher is less visible. 8 levels cost about "
                "31 dB.\n\n"
                "**Survival** (purified protected against purified original): *structural distortion* near 0 means "
                "that no structure of the protection is left; the higher, the more the purifier got wrong. A *detail "
                "ratio* below 1 means that fine detail was wiped out.\n\n"
                "**Controls.** Set *preset* to *random*, *shift*, *blocks*, *smooth*: the same budget without "
                "adversarial structure. Only what exceeds all of them counts.\n\n" + LIMITS,
            ),
        ),
    ),
    "robustness_report": Layout(
        boxes={
            "1": (400, 80, 300, 360),
            "2": (400, 500, 300, 120),
            "3": (400, 680, 300, 120),
            "4": (760, 80, 340, 520),
            "5": (760, 660, 340, 520),
            "6": (1160, 80, 440, 1100),
            "7": (1660, 80, 740, 1100),
            "8": (2460, 80, 740, 1100),
        },
        groups=(
            Group("1 · Picture and denoisers", GREY, ("1", "2", "3")),
            Group("2 · Protect", BLUE, ("4", "5")),
            Group("3 · Purify and measure", RED, ("6",)),
            Group("4 · The sheet", GREEN, ("7",)),
            Group("5 · The tables", GREEN, ("8",)),
        ),
        notes=(
            Note(
                "What is a protection worth?",
                (0, 80, 340, 480),
                "Protects your picture in two ways and sends both, the original and noise through every purifier of "
                "the list. Protected pictures you have already: delete the Protect nodes and load them.\n\n"
                "**Time.** Five minutes or so for 128×128 pixels on a CPU, half of it for *strong*. Fewer purifiers, "
                "*curve_iterations* 0 and smaller pictures are quicker.\n\n"
                "**Held out.** *held_out:gridpure10* runs on a second model that nothing was made against: the figure "
                "to trust most.\n\n"
                "**Own list.** *gridpure20*, *gridpure10@30* (timestep 30), *diffpure100*, *jpeg75*, *resize0.5*, "
                "*blur1*, *noise8*, *median3*; + joins steps from left to right.",
            ),
            Note(
                "Reading the sheet",
                (0, 620, 340, 400),
                "**The large figure** in the table: how much more the purifier distorts the picture where it is "
                "protected than where it carries noise of the same spectrum. From 3 on the protection survives, from "
                "1.5 on in part; below, the purifier leaves no more than noise.\n\n"
                "**Grey** columns have no diffusion model: they change little, so they judge nothing. JPEG and resize "
                "*before* a purifier are the test.\n\n" + LIMITS,
            ),
        ),
    ),
    "sd_protect": Layout(
        boxes={
            "1": (400, 80, 300, 360),
            "2": (400, 500, 300, 110),
            "3": (400, 670, 300, 120),
            "4": (400, 850, 300, 80),
            "5": (760, 80, 360, 520),
            "8": (760, 660, 360, 270),
            "6": (1180, 80, 400, 400),
            "7": (1180, 540, 400, 390),
            "9": (1640, 80, 560, 100),
            "10": (1640, 240, 560, 690),
        },
        groups=(
            Group("Picture and model", GREY, ("1", "2", "3", "4")),
            Group("Protect", BLUE, ("5", "8")),
            Group("Result", GREEN, ("6", "7")),
            Group("Inspection sheet", GREEN, ("9", "10")),
        ),
        notes=(
            Note(
                "Protect against Stable Diffusion",
                (0, 80, 340, 560),
                "Protects a picture against the checkpoint that ComfyUI has loaded: *Denoiser from Model* shares its "
                "weights and copies nothing.\n\n"
                + SD_CHECKPOINT
                + "**Text.** Empty is the unprejudiced choice; a description of the picture brings the model closer to "
                "it.\n\n"
                "**Size.** Any. The picture is worked on in tiles of 512 pixels; every pixel is protected. One step "
                "costs several passes through the model and back: try 10 *steps* first. A CPU is far too slow.\n\n"
                "**Reading it.** *Cost* says how visible the change is: PSNR and SSIM, higher is less visible. What "
                "survives a purifier and a training is measured by *sd_purification_customization*.",
            ),
            Note("Limits", (0, 700, 340, 230), LIMITS),
        ),
    ),
    "sd_purification_customization": Layout(
        boxes={
            "1": (0, 520, 340, 360),
            "5": (0, 940, 340, 180),
            "2": (0, 1180, 340, 110),
            "3": (0, 1350, 340, 120),
            "4": (0, 1530, 340, 80),
            "6": (400, 80, 340, 570),
            "7": (400, 710, 340, 360),
            "8": (800, 80, 340, 440),
            "9": (800, 760, 340, 440),
            "10": (1200, 80, 340, 120),
            "13": (1200, 260, 340, 110),
            "20": (1200, 430, 340, 60),
            "21": (1200, 550, 340, 580),
            "30": (1200, 1190, 340, 60),
            "31": (1200, 1310, 340, 580),
            "11": (1600, 80, 340, 120),
            "12": (1600, 260, 340, 120),
            "22": (1600, 440, 340, 120),
            "23": (1600, 620, 340, 280),
            "24": (1600, 960, 340, 60),
            "32": (1600, 1080, 340, 120),
            "33": (1600, 1260, 340, 280),
            "34": (1600, 1600, 340, 60),
            "25": (2000, 80, 420, 450),
            "35": (2000, 590, 420, 450),
            "42": (2000, 1100, 420, 180),
            "43": (2000, 1340, 420, 380),
            "40": (2480, 80, 560, 270),
            "41": (2480, 410, 560, 270),
            "44": (2480, 740, 560, 100),
            "45": (2480, 900, 560, 600),
        },
        groups=(
            Group("1 · Picture and model", GREY, ("1", "2", "3", "4", "5")),
            Group("2 · Protect", BLUE, ("6", "7")),
            Group("3 · Purify both, same noise", RED, ("8", "9")),
            Group("4 · Train on both, same seed", VIOLET, ("10", "13", "20", "21", "30", "31")),
            Group("5 · Generate with both, same seed", VIOLET, ("11", "12", "22", "23", "24", "32", "33", "34")),
            Group("6 · Compare", GREEN, ("25", "35", "42", "43")),
            Group("7 · Measure", GREEN, ("40", "41", "44", "45")),
        ),
        notes=(
            Note(
                "Protect, purify, customize",
                (0, 80, 340, 360),
                "The whole way of a stolen picture: it was protected, a purifier cleans it, a LoRA is trained on what "
                "is left, and pictures are generated with it. Beside it the same with the unprotected picture, same "
                "seeds: the difference is what the protection is worth.\n\n"
                + SD_CHECKPOINT
                + "**Purifier.** The checkpoint itself, DiffPure at timestep 100. For the papers' pixel purifier put "
                "an ADM checkpoint into **models/antipure** and wire *Load Pixel Denoiser* to both Purify nodes.\n\n"
                "**Training** is ComfyUI's own, experimental *Train LoRA*: text and generation use the rare word "
                "*sks*. Change *steps*, *learning rate* and *rank* in both nodes alike. One picture is little: the "
                "papers train on four and more.",
            ),
            Note(
                "Reading the result",
                (400, 1150, 340, 420),
                "**Compare.** Left the LoRA of the original, right that of the protected picture. ComfyUI 0.33 has a "
                "slider, *Compare Images*: wire both *VAE Decode* to it.\n\n"
                "**Survival** (purified protected against purified original): structural distortion near 0 means that "
                "the purifier removed the protection.\n\n"
                "**Generated**: only how different the pictures are. Another seed makes them different, too: change "
                "that of *Seed Training* to see how much.\n\n" + LIMITS,
            ),
        ),
    ),
}
