"""Records of runs that never were, with round numbers, so that what is made of them is known by hand."""

import json

CLEAN_TOTAL, ATTACK_TOTAL = 100, 80


def rates(clean_correct, attack_hits, robust_correct):
    return {
        "clean_correct": clean_correct,
        "clean_total": CLEAN_TOTAL,
        "attack_hits": attack_hits,
        "robust_correct": robust_correct,
        "attack_total": ATTACK_TOTAL,
        "clean_accuracy": clean_correct / CLEAN_TOTAL,
        "attack_success_rate": attack_hits / ATTACK_TOTAL,
        "robust_accuracy": robust_correct / ATTACK_TOTAL,
    }


def content(seed=0, attack=None, defense=None, hits=4, rating=0.9, seconds=2.0, **sections):
    """Return a record as a run writes it; sections are merged into its config."""
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
    return {
        "schema_version": 1,
        "run_id": "-".join([config["attack"]["name"], config["defense"]["name"], str(seed)]),
        "victim_id": "victim",
        "status": "finished",
        "config": config,
        "data": {"name": config["data"]["name"], "num_classes": 10, "class_names": [f"class {i}" for i in range(10)]},
        "metrics": {
            "before": rates(99, 80, 0),
            "after": rates(90, hits, 60),
            "defense_effectiveness_rating": rating,
        },
        "cost": {"compile_seconds": 1.5, "run_seconds": seconds, "gradient_evaluations": 200, "epochs": 10},
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
