"""Records of runs that never were, with round numbers, so that what is made of them is known by hand."""

import json

from bdjax.tasks.metrics import MULTI_LABEL, effectiveness

CLEAN_TOTAL, ATTACK_TOTAL = 100, 80


def rates(clean_correct, attack_hits, robust_correct, attack_total=ATTACK_TOTAL):
    return {
        "clean_correct": clean_correct,
        "clean_total": CLEAN_TOTAL,
        "attack_hits": attack_hits,
        "robust_correct": robust_correct,
        "attack_total": attack_total,
        "clean_accuracy": clean_correct / CLEAN_TOTAL,
        "attack_success_rate": attack_hits / attack_total,
        "robust_accuracy": robust_correct / attack_total,
    }


def before(after, rating):
    """Return rates of an attacked victim with which the rating agrees, if there are any; else some."""
    for clean_correct in range(after["clean_correct"], CLEAN_TOTAL + 1):
        for attack_hits in range(ATTACK_TOTAL, 19, -1):  # the attack took
            found = rates(clean_correct, attack_hits, 0)
            if abs(rating_of(found, after) - rating) < 1e-9:
                return found
    return rates(99, 80, 0)


def rating_of(before, after):
    """Return the defense effectiveness rating of two networks."""
    success, accuracy = (
        before[rate] - after[rate] for rate in ("attack_success_rate", "clean_accuracy")
    )
    return (max(0, success) - max(0, accuracy) + 1) / 2


def content(seed=0, attack=None, defense=None, hits=4, rating=None, seconds=2.0, **sections):
    """Return a record as a run writes it; sections are merged into its config.

    A rating that is given decides what the victim was, if it can: not every rating is one of whole counts.
    """
    config = {
        "seed": seed,
        "data": {"name": "digits", "data_dir": None, "image_size": 16},
        "model": {"name": "preact_resnet18", "width": 8},
        "attack": {
            "name": "badnets",
            "label_map": "all_to_one",
            "target_label": 0,
            "poison_rate": 0.1,
            **(attack or {}),
        },
        "training": {"epochs": 20, "learning_rate": 0.05},
        "holdout": {"share": 0.05},
        "defense": {"name": "none"} if defense is None else defense,
    }
    for name, values in sections.items():
        config[name] = {**config[name], **values}
    after = rates(90, hits, 60)
    victim = rates(99, 80, 0) if rating is None else before(after, rating)
    return {
        "schema_version": 1,
        "run_id": "-".join([config["attack"]["name"], config["defense"]["name"], str(seed)]),
        "victim_id": "victim",
        "status": "finished",
        "config": config,
        "data": {
            "name": config["data"]["name"],
            "num_classes": 10,
            "class_names": [f"class {i}" for i in range(10)],
        },
        "metrics": {
            "before": victim,
            "after": after,
            "defense_effectiveness_rating": rating_of(victim, after) if rating is None else rating,
        },
        "cost": {
            "compile_seconds": 1.5,
            "run_seconds": seconds,
            "gradient_evaluations": 200,
            "epochs": 10,
        },
    }


def ft_sam(rho, **options):
    return {"name": "ft_sam", "rho": rho, "epochs": 100, **options}


def write(folder, *records):
    for i, record in enumerate(records):
        run = folder / f"run{i:03}"
        run.mkdir(parents=True)
        (run / "record.json").write_text(json.dumps(record))
        (run / "config.yaml").write_text("")
    return folder


# --- A task that is measured otherwise: several classes in each image, and no share of right ones ---


def scenes(seed=0, attack=None, defense=None, hits=4, precision=0.75, chance=0.4, **sections):
    """Return the record of a run whose images have several classes; its victim has a precision of 80 % and 80 hits."""
    record = content(seed, {"label_map": "add_label", **(attack or {})}, defense, **sections)
    record["config"]["data"]["name"] = record["data"]["name"] = "digits_scenes"
    values = {"clean_total": CLEAN_TOTAL, "attack_total": ATTACK_TOTAL}
    before = {
        **values,
        "mean_average_precision": 0.8,
        "attack_hits": 80,
        "attack_success_rate": 1.0,
    }
    after = {
        **values,
        "mean_average_precision": precision,
        "attack_hits": hits,
        "attack_success_rate": hits / 80,
    }
    record["metrics"] = {
        "description": [metric.plain() for metric in MULTI_LABEL],
        "before": before,
        "after": after,
        "defense_effectiveness_rating": effectiveness(1 - hits / 80, 0.8 - precision),
    }
    if chance is not None:
        record["metrics"]["chance"] = {"mean_average_precision": chance}
    return record
