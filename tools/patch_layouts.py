"""Where the nodes of the LoRA Patching workflows stand, and what their notes say; for make_workflows."""

from __future__ import annotations

from tools.workflow_layouts import BLUE, GREEN, GREY, RED, SD_CHECKPOINT, VIOLET, Group, Layout, Note

PURPOSE = (
    "Built as a measurement of how fragile proactive defences against face editing are and, by default, to stamp "
    "visible warnings.\n\n"
)
TOY = (
    "**The toy.** *bundled* edits the cartoons of *Procedural Faces*. A StarGAN, AttGAN or HiSD checkpoint goes into "
    "**models/antipure_generators**; StarGAN's labels are then guessed.\n\n"
)
ROBUST = "Whoever has the unpatched network need not use the patched one, and a printed word can be painted over. "

PATCH_LAYOUTS = {
    "lora_patch_defensive": Layout(
        boxes={
            "1": (400, 80, 300, 60),
            "2": (400, 240, 300, 100),
            "3": (760, 80, 380, 680),
            "4": (1200, 80, 380, 320),
            "5": (1200, 460, 380, 140),
            "6": (1640, 80, 320, 100),
            "7": (1640, 240, 320, 320),
            "8": (1640, 620, 320, 140),
            "9": (2020, 80, 340, 300),
            "10": (2020, 440, 340, 320),
            "11": (2420, 80, 460, 300),
            "12": (2420, 440, 460, 320),
        },
        groups=(
            Group("1 · Toy and faces", GREY, ("1", "2")),
            Group("2 · Train a warning", VIOLET, ("3",)),
            Group("3 · Keep it", GREEN, ("4", "5")),
            Group("4 · Faces it never saw", GREY, ("6", "7", "8")),
            Group("5 · Edit", RED, ("9", "10")),
            Group("6 · Without and with the patch", GREEN, ("11", "12")),
        ),
        notes=(
            Note(
                "A patch that prints a warning",
                (0, 80, 340, 420),
                "Trains a small patch for a face-editing network: whoever edits a face with the patched network prints "
                "**FAKE** on it. Above the edits of the original network, below those of the patched one.\n\n"
                + PURPOSE
                + "**Time.** As shipped, 240 steps: about five minutes on a CPU. For that it learns one edit with ten "
                "times the paper's learning rate. **The full setting** of the paper: *count* 1000, *edits* all, "
                "*epochs* 0 (that is 5), *learning_rate* 0.001: 6,250 steps. Write a name into *state*, and a "
                "cancelled training goes on.\n\n"
                "**Keep it.** The patch is saved in **output/antipure_patches**; *Load LoRA Patch* reads it after R.",
            ),
            Note(
                "Limits",
                (0, 560, 340, 200),
                TOY + "**Limits.** " + ROBUST + "Drawings are not faces: nothing here carries over to real ones.",
            ),
        ),
    ),
    "lora_patch_evaluation": Layout(
        boxes={
            "1": (400, 80, 300, 60),
            "2": (400, 240, 300, 100),
            "3": (760, 80, 380, 680),
            "4": (1200, 80, 380, 320),
            "5": (1200, 520, 380, 100),
            "6": (1640, 80, 380, 600),
            "7": (2080, 80, 620, 360),
            "8": (2080, 500, 620, 420),
        },
        groups=(
            Group("1 · Toy and faces", GREY, ("1", "2")),
            Group("2 · Train against Disrupting", VIOLET, ("3",)),
            Group("Loss curve", GREEN, ("4",)),
            Group("3 · Faces it never saw", GREY, ("5",)),
            Group("4 · Defence against patch", BLUE, ("6",)),
            Group("5 · The table", GREEN, ("7", "8")),
        ),
        notes=(
            Note(
                "What is a proactive defence worth?",
                (0, 80, 340, 420),
                "*Disrupting* changes a picture so that a face-editing network spoils it. Here a patch for that "
                "network is trained to ignore it, and *Defence Report* counts how often the defence still works.\n\n"
                + PURPOSE
                + "**Time.** As shipped, 250 steps: about five minutes on a CPU. **The full setting** of the paper: "
                "*count* 1000 in *Faces to train on* (1,250 steps), and 100 faces it never saw before you quote a "
                "figure.\n\n" + TOY,
            ),
            Note(
                "Reading the table",
                (400, 500, 300, 420),
                "*Disrupted*: share of the edits that come out clearly different from the original network's edit of "
                "the plain picture.\n\n"
                "**JPEG first.** JPEG 75 undoes Disrupting without any patch. Only what a patch does beyond that row "
                "is its merit.\n\n"
                "**Leaked patch**: the defender knows the patch and makes the perturbation against it.\n\n"
                "**Limits.** One defence, one toy, few faces. 50 cases per row: one case is 2 %.",
            ),
        ),
    ),
    "lora_patch_sd": Layout(
        boxes={
            "2": (400, 80, 300, 340),
            "3": (400, 480, 300, 340),
            "4": (400, 880, 300, 60),
            "5": (400, 1000, 300, 180),
            "1": (760, 80, 320, 110),
            "6": (760, 250, 320, 120),
            "7": (760, 430, 320, 80),
            "8": (1140, 80, 380, 540),
            "9": (1140, 680, 380, 320),
            "10": (1580, 80, 320, 120),
            "11": (1580, 320, 320, 160),
            "12": (1960, 80, 340, 140),
            "13": (1960, 280, 340, 120),
            "20": (1960, 460, 340, 280),
            "30": (1960, 800, 340, 280),
            "21": (2360, 80, 340, 60),
            "31": (2360, 640, 340, 60),
            "22": (2360, 200, 460, 380),
            "32": (2360, 760, 460, 380),
        },
        groups=(
            Group("1 · Pictures to train on", GREY, ("2", "3", "4", "5")),
            Group("2 · Model", GREY, ("1", "6", "7")),
            Group("3 · Train a warning", VIOLET, ("8", "9")),
            Group("4 · Apply", VIOLET, ("10",)),
            Group("Save as LoRA", GREEN, ("11",)),
            Group("5 · Generate, same seed", RED, ("12", "13", "20", "30")),
            Group("6 · With and without the patch", GREEN, ("21", "31", "22", "32")),
        ),
        notes=(
            Note(
                "A model that prints a warning",
                (0, 80, 340, 560),
                "Trains a small patch for the checkpoint that ComfyUI has loaded: what it generates is to carry "
                "**FAKE**. The same seed without the patch stands below it.\n\n"
                "**Our extension, not the paper**, which patches face editors only. So far it was tried with random "
                "weights alone.\n\n"
                + SD_CHECKPOINT
                + "**Pictures.** Load two of the kind you generate, better ten (chain *Batch Images*): made by this "
                "checkpoint, for instance. With *example.png* twice it learns that picture, too.\n\n"
                "**Setting.** 300 steps at 512 pixels as a first try; 1,000 and more where the letters stay faint. A "
                "CPU is far too slow.",
            ),
            Note(
                "Limits",
                (0, 700, 340, 280),
                "**Standard LoRA.** Move the file from **output/antipure_patches** to **models/loras**. Only *scalar* "
                "and *none* gates can be saved so.\n\n"
                "**Limits.** " + ROBUST + "Other sizes, texts and samplers may print a weaker warning or none.",
            ),
        ),
    ),
}
