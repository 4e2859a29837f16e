"""Zero-shot and retrieval: measure, write the results into the run's folder, return them."""

import numpy as np
import pyarrow as pa

from trainer.evaluate.config import Setting
from trainer.evaluate.context import open_setting, require
from trainer.evaluate.results import Result, describe_dataset, describe_model, predictions_table, write_result
from trainer.evaluate.tasks.retrieval import Positives, retrieval
from trainer.evaluate.tasks.zero_shot import zero_shot


def evaluate_zero_shot(setting: Setting) -> list[Result]:
    """Classify by class names alone.

    Raises:
        RequestError: see ``open_setting``; or the set has no classes.
    """
    opened = open_setting(setting)
    require(opened, "classification", "multilabel")
    found = zero_shot(opened.test, opened.classifier(opened.test))
    dataset = opened.test.dataset
    if found.answers is not None:
        table = predictions_table(opened.test.keys, [found.answers])
    else:
        table = pa.table({"class": list(dataset.classes), **found.by_class})
    result = Result(
        task="zero-shot",
        method="zero-shot",
        figures=found.figures,
        model=describe_model(opened.towers),
        dataset=describe_dataset(dataset),
        config={"batch_size": setting.batch_size, "precision": "fp32"},
    )
    write_result(opened.run, result, table)
    return [result]


def evaluate_retrieval(setting: Setting, positives: Positives) -> list[Result]:
    """Find pictures by captions and captions by pictures.

    Raises:
        RequestError: see ``open_setting``; or the set has no captions.
    """
    opened = open_setting(setting)
    require(opened, "retrieval")
    found = retrieval(opened.test, positives)
    image_of = np.repeat(np.arange(len(opened.test)), [len(some) for some in opened.test.captions])
    by_image = [found.text_to_image[image_of == image].tolist() for image in range(len(opened.test))]
    table = pa.table({"key": opened.test.keys, "image_to_text": found.image_to_text, "text_to_image": by_image})
    result = Result(
        task="retrieval",
        method="retrieval",
        figures=found.figures,
        model=describe_model(opened.towers),
        dataset=describe_dataset(opened.test.dataset, len(opened.test.texts)),
        config={"batch_size": setting.batch_size, "precision": "fp32", "positives": positives},
        asked={"positives": positives},
    )
    write_result(opened.run, result, table)
    return [result]
