"""The parts of the report on a GPU, and what measures each."""

from __future__ import annotations

from timam_lab.speed.gpu import CORES, Part, correct, costs, learns

PARTS = {
    "runs": Part("It runs", "Every preset for a few steps, evaluated and searched.", correct.runs),
    "step": Part(
        "A training step",
        "Random weights and inputs, 11,003 people, captions of 32 tokens. MFU: operations as torch counts them, over "
        "the rate of a large matrix product here.",
        costs.step,
    ),
    "learning": Part(
        "Learning at the size of CUHK-PEDES",
        "Rendered pedestrians. The recipe of `quick`, scaled (`learning_config`). Seconds are of training and "
        "validation. Test: 1,000 people.",
        learns.learning,
    ),
    "tests": Part("Tests", "On a machine whose default device is the GPU.", correct.tests),
    "studies": Part("A study", "Many runs side by side on one device, 1,500 people; fractions.", learns.studies),
    "spread": Part("Spread", "Runs of one config and seed, five at a time; 500 people.", learns.spread),
    "evaluation": Part("Evaluation and stores", f"{CORES} cores.", costs.evaluation),
    "processes": Part(
        "Processes", "Two processes on one device speak gloo: NCCL wants a device for each.", correct.processes
    ),
    "notebooks": Part("Notebooks", "Executed by notebooks/execute.py.", learns.notebooks),
}
