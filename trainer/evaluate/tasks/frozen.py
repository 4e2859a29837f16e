"""Tasks of a frozen model: zero-shot classification and image–text retrieval."""

import numpy as np
import pyarrow as pa

from trainer.evaluate.config import EvalConfig
from trainer.evaluate.context import open_context, require
from trainer.evaluate.results import Result, describe_dataset, describe_model, predictions_table, write_result
from trainer.evaluate.tasks.retrieval import retrieval
from trainer.evaluate.tasks.zero_shot import zero_shot
from trainer.loop.config import Positives


def evaluate_zero_shot(config: EvalConfig) -> list[Result]:
    """Evaluate classification by class names alone.

    Raises:
        RequestError: see ``open_context``; or the set has no classes.
    """
    context = open_context(config)
    require(context, "classification", "multilabel")
    measured = zero_shot(context.test, context.classifier(context.test))
    dataset = context.test.dataset
    if measured.answers is not None:
        table = predictions_table(context.test.keys, [measured.answers])
    else:
        table = pa.table({"class": list(dataset.classes), **measured.by_class})
    result = Result(
        task="zero-shot",
        method="zero-shot",
        figures=measured.figures,
        model=describe_model(context.towers),
        dataset=describe_dataset(dataset),
        config={"batch_size": config.batch_size, "precision": "fp32"},
    )
    write_result(context.run, result, table)
    return [result]


def evaluate_retrieval(config: EvalConfig, positives: Positives) -> list[Result]:
    """Evaluate retrieval of pictures by captions and of captions by pictures.

    Raises:
        RequestError: see ``open_context``; or the set has no captions.
    """
    context = open_context(config)
    require(context, "retrieval")
    test = context.test
    measured = retrieval(test, positives)
    image_of = np.repeat(np.arange(len(test)), [len(captions) for captions in test.captions])
    by_image = [measured.text_to_image[image_of == image].tolist() for image in range(len(test))]
    table = pa.table({"key": test.keys, "image_to_text": measured.image_to_text, "text_to_image": by_image})
    result = Result(
        task="retrieval",
        method="retrieval",
        figures=measured.figures,
        model=describe_model(context.towers),
        dataset=describe_dataset(test.dataset, len(test.texts)),
        config={"batch_size": config.batch_size, "precision": "fp32", "positives": positives},
        asked={"positives": positives},
    )
    write_result(context.run, result, table)
    return [result]
