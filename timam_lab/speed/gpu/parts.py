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
    "abreast": Part(
        "Runs side by side",
        "Each run has a process and a core of its own, random inputs in the place of stored ones, batches of 64, 24 "
        "words.",
        costs.abreast,
    ),
    "learning": Part(
        "Learning",
        "11,003 rendered people for training, as many as CUHK-PEDES has. `quick` with batches of 64 "
        "(`learning_settings`) is trained on all of them and on fewer, at equal steps. Text to image. "
        "Seconds are of training and validation, beside the other runs.",
        learns.learning,
    ),
    "studies": Part(
        "Studies",
        "Many runs side by side on one device: the variants of notebook 03 with `study_settings`. Percent, mean and "
        "95 % interval over the seeds.",
        learns.studies,
    ),
    "notebooks": Part("Notebooks", "Executed by notebooks/execute.py.", learns.notebooks),
    "tests": Part("Tests", "On a machine whose default device is the GPU.", correct.tests),
    "spread": Part("Spread", "Runs of one config and seed, ten at a time; 500 people.", learns.spread),
    "evaluation": Part("Evaluation and stores", f"{CORES} cores.", costs.evaluation),
    "processes": Part(
        "Processes", "Two processes on one device speak gloo: NCCL wants a device for each.", correct.processes
    ),
}
