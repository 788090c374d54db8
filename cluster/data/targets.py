"""What a Token2Text reward model reads out of an utterance, and what is wrong with a manifest for it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.data.passes import kept_pass
from learner.batches.grouping import Target
from learner.token2text.model import Token2TextConfig
from speech.errors import UserError
from speech.manifests import Manifest
from speech.manifests.entries import OWN_FIELDS
from speech.records import Utterance
from speech.text import normalise

if TYPE_CHECKING:
    from cluster.config import RunConfig
    from learner.config import Token2TextModelConfig


def attribute_values(utterance: Utterance, names: Iterable[str]) -> dict[str, str]:
    """Class of each named attribute that the manifest gives: `speaker` and `language` are keys of the line itself, all
    others stand in its `attributes`."""
    known = {key: getattr(utterance, key) for key in OWN_FIELDS} | dict(utterance.attributes)
    return {name: known[name] for name in names if known.get(name) is not None}


def targets_of(model: Token2TextConfig, utterance: Utterance) -> Target:
    """Text and attributes as the model's labels; an attribute that the manifest does not give is unknown.

    Raises:
        UserError: the text or a class is one that the model does not know.
    """
    values = attribute_values(utterance, model.attributes)
    return Target(model.text_ids(utterance.text, utterance.language), model.attribute_ids(values))


def target_problems(model: Token2TextConfig, utterance: Utterance) -> Iterator[tuple[str, str]]:
    """(key, message) of the text and of each class that the model does not know."""
    try:
        model.text_ids(utterance.text, utterance.language)
    except UserError as error:
        yield "text", str(error)
    for name, value in attribute_values(utterance, model.attributes).items():
        try:
            model.attribute_ids({name: value})
        except UserError as error:
            yield name if name in OWN_FIELDS else f"attributes.{name}", str(error)


def recording_problems(utterance: Utterance) -> Iterator[tuple[str, str]]:
    """(key, message) where there is nothing to read."""
    if not utterance.audio:
        yield "audio", "missing: the Token2Text model reads recordings"


def new_model(shape: Token2TextModelConfig, speech_vocabulary: int, manifest: Manifest) -> Token2TextConfig:
    """The configuration of a model that reads the texts of a manifest, with the classes that occur in it.

    Args:
        speech_vocabulary: number of the codec's tokens.

    Raises:
        UserError: the sizes make no sense, or an attribute has fewer than two classes in the manifest.
    """

    def find(utterances: Iterable[Utterance]) -> tuple[list[str], dict[str, list[str]]]:
        written: set[str] = set()
        classes: dict[str, set[str]] = {name: set() for name in shape.attributes}
        for utterance in utterances:
            if shape.characters is None:
                written.update(normalise(utterance.text, utterance.language))
            for name, value in attribute_values(utterance, shape.attributes).items():
                classes[name].add(value)
        return sorted(written), {name: sorted(values) for name, values in classes.items()}

    settings = ["characters and classes", shape.characters, list(shape.attributes)]
    written, found_classes = kept_pass(manifest, settings, find)
    attributes: dict[str, tuple[str, ...]] = {}
    for name, classes in found_classes.items():
        if len(classes) < 2:
            found = f"only {classes[0]!r}" if classes else "no utterance with it"
            raise UserError(f"token2text.attributes: {name!r} needs at least two classes; {manifest.path} has {found}")
        attributes[name] = tuple(classes)
    try:
        return Token2TextConfig(
            speech_vocabulary,
            tuple(written if shape.characters is None else shape.characters),
            attributes,
            hidden=shape.hidden,
            layers=shape.layers,
            heads=shape.heads,
            kernel=shape.kernel,
            labels_per_token=shape.labels_per_token,
        )
    except ValueError as error:
        raise UserError(f"token2text: {error}") from error


def diffro_model(config: RunConfig, manifest: Manifest) -> Token2TextConfig:
    """The reward model of DiffRO.

    Raises:
        UserError: attributes are to be rewarded that it does not judge, or that no utterance gives.
    """
    settings = config.learner.diffro
    assert settings.reward_model is not None  # checked by the configuration
    model = Token2TextConfig.load(Path(settings.reward_model))
    if settings.attributes > 0:
        if not model.attributes:
            raise UserError(f"learner.diffro.attributes: {settings.reward_model} judges no attributes, only text")
        names = list(model.attributes)

        def find(utterances: Iterable[Utterance]) -> bool:
            return any(attribute_values(utterance, names) for utterance in utterances)

        if not kept_pass(manifest, ["any attribute", names], find):
            raise UserError(
                f"learner.diffro.attributes: no utterance of {manifest.path} says which "
                f"{' or '.join(model.attributes)} it should have"
            )
    return model
