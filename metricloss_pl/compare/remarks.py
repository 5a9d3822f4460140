"""What a reader must know beside the numbers: what they can't show, what went wrong, and how they are to be read."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from metricloss_pl.compare import statistics
from metricloss_pl.compare.statistics import LEVEL
from metricloss_pl.compare.tuning import score
from metricloss_pl.compare.words import at_size, by_size, count, grouped, length_of, listed, percent, span
from metricloss_pl.metrics import chance_accuracy

if TYPE_CHECKING:
    from metricloss_pl.compare.statistics import Estimate
    from metricloss_pl.compare.summary import Findings, Row
    from metricloss_pl.compare.words import Size

__all__ = [
    "few_test_images",
    "few_validation_images",
    "how_to_read",
    "in_plain_words",
    "is_small",
    "least_difference",
    "more_test_images",
    "more_validation_images",
    "repetitions",
    "scope",
    "technical_terms",
    "trainings",
    "warnings",
]

_FEW_IMAGES = 5  # of a class in the test part
_LITTLE = 0.1  # of the way from guessing to no mistake
_SAME = 1e-6  # by which rounding may change a metric
_LARGE = 0.1  # a difference that a reader would expect to be seen
_ROUNDED = 0.02  # larger differences are given in whole points
_MAX_NAMED = 3
_MAX_REASON = 100  # characters


def warnings(comparison: Findings) -> list[str]:
    """All that makes the results worth less than they look, the worst first."""
    return [
        *_failed_finals(comparison),
        *_unequal_training(comparison),
        *_unlike_surroundings(comparison),
        *(comparison.plan.get("warnings") or ()),
        *_small_test_part(comparison),
        *_tuned_by_chance(comparison),
        *_nothing_learned(comparison),
        *_failed_trials(comparison),
        *_small_classes(comparison),
    ]


def least_difference(comparison: Findings) -> str | None:
    """Below which differences could not have been shown, by the spread as it is; None where there was no test."""
    found = _least(comparison)
    if found is None:
        return None
    smallest, difference = found
    points = f"{100 * smallest:.0f}" if smallest >= _ROUNDED else f"{100 * smallest:.1f}"
    which = "no difference" if smallest >= 1 else f"differences below about {points} points"
    not_shown = "could have been shown" if smallest >= 1 else "could not have been shown"
    return (
        f"{which} {not_shown} with {count(difference.images, 'test image')} and "
        f"{count(difference.repetitions, 'repetition')}"
    )


def is_small(comparison: Findings) -> bool:
    """Whether a difference was not shown, and could not have been although it were large."""
    found = _least(comparison)
    return found is not None and found[0] >= _LARGE


def _least(comparison: Findings) -> tuple[float, Estimate] | None:
    """The smallest difference that could have been shown for any variant that has none shown, and that variant's test.

    Holm's level for them is that of so many tests as have shown nothing.
    """
    open_ = [row for row in comparison.overall if row.p is not None and row.p > LEVEL]
    found = []
    for row in open_:
        least = None if row.difference is None else statistics.least_shown(row.difference, len(open_))
        if row.difference is not None and least is not None:
            found.append((least, row.difference))
    return min(found, key=lambda one: one[0], default=None)


def few_test_images(images: int, tests: int) -> str | None:
    """What so few test images can't show, whatever is found on them; None where they are not few.

    Args:
        images: Those that are tested, in all folds together.
        tests: Tests for which p is corrected.
    """
    needed = statistics.fewest_differing(tests)
    if needed < _LARGE * images:
        return None
    can = f"{count(images, 'test image')} can"
    if images < needed:
        return f"{can} show no difference, however large: that takes {needed} on which two variants differ."
    alone = statistics.fewest_differing()  # once the other tests have shown one, by Holm
    return f"{can} show a difference only between variants that differ on at least {alone} of them."


def more_test_images(folds: int | None) -> str:
    """What helps where test images are few."""
    if folds:
        return "More images help most."
    return "What helps most: --folds 5, which tests every image once, in about 5 times as many runs."


def _small_test_part(comparison: Findings) -> list[str]:
    images, more = int(comparison.test_images.sum()), more_test_images(comparison.plan.get("folds"))
    others = [row for row in comparison.overall if row.variant != comparison.baseline]
    open_ = [row for row in others if row.p is None or row.p > LEVEL]
    few = few_test_images(images, len(open_)) if images and open_ else None
    least = _least(comparison)
    if least is None:
        return [f"{few} {more}"] if few else []
    if not is_small(comparison):
        return []
    found = least[1]
    # Where trainings differ more than images; but of few images no number of trainings makes enough.
    # Folds have no images in common, so that their few degrees of freedom say nothing of trainings.
    seldom = found.degrees is not None and found.degrees < 2 * (found.repetitions - 1)
    if not few and seldom and not _are_folds_repeated(comparison):
        more = "More seeds help most."
    return [f"This comparison is too small to tell much: {least_difference(comparison)}. {more}"]


def few_validation_images(images: int) -> str | None:
    """What so few validation images can't tell; None where they are not few."""
    needed = statistics.fewest_differing()
    if needed < _LARGE * images:
        return None
    can_not = f"{count(images, 'validation image')} can't tell"
    if images < needed:
        return f"{can_not} any two trials apart, so that chance may choose among them."
    return f"{can_not} trials apart that differ on fewer than {needed} of them, so that chance may choose among those."


def more_validation_images(folds: int | None) -> str:
    """What helps where validation images are few."""
    anew = "" if folds else " --folds 5, which chooses anew in each fold,"
    return (
        f"What helps: more images, a larger --tuning.val_fraction,{anew} or --tuning.trials 0, which takes the "
        "configs' own values."
    )


def _tuned_by_chance(comparison: Findings) -> list[str]:
    """Of the choices on few validation images those in which chance alone may have put a trial first."""
    studies: dict[tuple[Any, ...], dict[str, float]] = {}
    for run in comparison.trials:
        if run["status"] == "ok":
            of_settings = studies.setdefault((run["variant"], *_division(run)), {})  # equal ones give equal results
            of_settings[json.dumps(run["settings"], sort_keys=True)] = score(run, comparison.chosen_by)
    parts = [part for part in comparison.plan.get("parts") or () if part["kind"] == "trial"]
    validation = {_division(part): (part["val"], _telling(comparison, part)) for part in parts}
    choices = {study: sorted(scores.values()) for study, scores in studies.items() if len(scores) > 1}
    needed, folds = statistics.fewest_differing(), comparison.plan.get("folds")
    images, tellings, level = [], [], 0
    for (_, *division), (*_, second, best) in choices.items():
        number, telling = validation.get(tuple(division), (0, None))
        if telling is None or few_validation_images(telling) is None:
            continue
        if round((best - second) * telling) < needed:
            images.append(number)
            tellings.append(telling)
            level += best - second < _SAME
    if not images:
        return []
    one, such = ("one of the rarest class", "such images") if comparison.balanced else ("one", "images")
    most = "up to " if len(set(tellings)) > 1 else ""
    splits = {run["split"] for run in comparison.planned.values()}
    anew = folds and (len(splits) > 1 or _are_folds_repeated(comparison))
    same = "" if anew else " All repetitions share what was chosen, so that no interval shows this."
    return [
        f"Tuning may have been little more than a coin toss: on {span(images, 'validation image')}, where {one} makes "
        f"{most}{100 / min(tellings):.0f} points, the best trial was in {len(images)} of "
        f"{count(len(choices), 'choice')} of settings fewer than {needed} {such} ahead of the next, and in "
        f"{level or 'none'} level with it.{same} {more_validation_images(folds)}"
    ]


def _telling(comparison: Findings, part: dict[str, Any]) -> int | None:
    """How many validation images would each make as much of the metric as one does, or one of the rarest class."""
    if not comparison.balanced:
        return int(part["val"])
    # Earlier plans don't tell.
    return part["val_classes"] * part["val_rarest"] if "val_rarest" in part else None


def _division(run: dict[str, Any]) -> tuple[Size, int, int | None]:
    return run["samples_per_class"], run["split"], run["fold"]


def _small_classes(comparison: Findings) -> list[str]:
    counts = comparison.test_images.tolist()
    few = [
        (name, number)
        for name, number in zip(comparison.class_names, counts, strict=True)
        if number < _FEW_IMAGES and any(counts)
    ]
    if not few:
        return []
    names = ", ".join(f"{name} {number}" for name, number in few[:_MAX_NAMED])
    more = f" and {len(few) - _MAX_NAMED} more" if len(few) > _MAX_NAMED else ""
    classes = "1 class has" if len(few) == 1 else f"{len(few)} classes have"
    return [
        f"{classes} fewer than {_FEW_IMAGES} test images ({names}{more}): what is said of single classes is little "
        "more than chance."
    ]


def _nothing_learned(comparison: Findings) -> list[str]:
    chance, error = _guessing(comparison)
    known = [row for row in comparison.rows if row.accuracy is not None]
    # Few images leave a wide error, within which much may have been learned: that is said elsewhere.
    little = min(2 * error, _LITTLE * (1 - chance))
    low = [row for row in known if row.accuracy is not None and row.accuracy.mean <= chance + little]
    if not low:
        return []
    what = "balanced accuracy" if comparison.balanced else "accuracy"
    guess = f"naming one class for every image ({percent(chance)} % {what})"
    if len(low) == len(known):
        tells = 2 * error < (1 - chance) / 2  # a network half as good as can be would be told from guessing
        surely = tells and all(row.accuracy.mean <= chance + error for row in known if row.accuracy is not None)
        beginning = "Nothing has been learned" if surely else "Perhaps nothing has been learned"
        text = f"{beginning}: no variant is shown to be better than {guess}."
    else:
        names = [f"{row.variant} {at_size(row.size)}" for row in low[:_MAX_NAMED]]
        if len(low) > _MAX_NAMED:
            names[-1] = f"{len(low) - _MAX_NAMED + 1} more in the tables"
        verb = "is" if len(low) == 1 else "are"
        above = all(row.accuracy.mean > chance + 2 * error for row in known if row.accuracy and row not in low)
        text = f"{listed(names)} {verb} not shown to be better than {guess}{'; the others are' if above else ''}."
    return [f"{text} {_help(comparison, low, chance)}"]


def _guessing(comparison: Findings) -> tuple[float, float]:
    """The accuracy of naming the most frequent class for every test image, and the standard error of a guesser."""
    counts = comparison.test_images.tolist()
    return chance_accuracy(counts, comparison.balanced) if any(counts) else (-math.inf, 0.0)


def _help(comparison: Findings, rows: list[Row], chance: float) -> str:
    """What to turn: whether the training images at least were learned tells."""
    trained = [row.train for row in rows if row.train is not None]
    if trained and min(trained) > (1 + chance) / 2:
        return (
            f"The training images were learned ({percent(min(trained))} %): more of them, or augmentation, help then, "
            "not longer training."
        )
    longer = "More epochs (--epochs)" if comparison.plan.get("steps") is None else "More steps (--steps)"
    return f"{longer} or a larger learning rate may help; a rate far too large does the same harm."


def _failed_finals(comparison: Findings) -> list[str]:
    lines = []
    for row in comparison.overall:
        if row.failed:
            runs = [run for run in comparison.failed_finals if run["variant"] == row.variant]
            judged = "it is judged by those that did not" if row.done else "it is not judged"
            lines.append(
                f"{row.variant}: {row.failed} of {count(row.planned, 'final run')} failed ({_reason(runs[0])}); "
                f"{judged}."
            )
    return lines


def _unequal_training(comparison: Findings) -> list[str]:
    """Of each size at which runs of the same seed, split and fold differ in epochs or steps between variants."""
    lines = []
    for size in comparison.sizes:
        lengths: dict[tuple[int, int, int | None], set[tuple[int | None, int | None]]] = {}
        for variant in comparison.variants:
            for run in comparison.finals_of(variant, size).values():
                place = run["split"], run["seed"], run["fold"]
                lengths.setdefault(place, set()).add((run.get("epochs"), run.get("steps")))
        if any(len(different) > 1 for different in lengths.values()):
            texts = grouped({variant: _training(comparison, variant, size) for variant in comparison.variants})
            each = "; ".join(f"{listed(variants)} {text}" for text, variants in texts.items())
            lines.append(f"Not all variants were trained equally long {at_size(size)}: {each}.")
    return lines


def trainings(comparison: Findings) -> list[tuple[str, str]]:
    """How long the final runs trained, for each of the variants where that differs."""
    texts = {}
    for variant in comparison.variants:
        of_size = {size: _training(comparison, variant, size) for size in comparison.sizes}
        sizes = grouped({at_size(size): text for size, text in of_size.items()})
        parts = [f"{listed(of)} {text}" for text, of in sizes.items()]
        texts[variant] = "; ".join(sizes if len(sizes) == 1 else parts)
    groups = grouped(texts)
    return [(f"Training of {listed(of)}" if len(groups) > 1 else "Training", text) for text, of in groups.items()]


def _training(comparison: Findings, variant: str, size: Size) -> str:
    return length_of(comparison.finals_of(variant, size).values())


def _unlike_surroundings(comparison: Findings) -> list[str]:
    """Which variant was run with which versions, hardware and commit, of those in which the variants differ."""
    facts: dict[str, dict[str, list[str]]] = {}
    ran = [
        variant for variant in comparison.variants if any(r["variant"] == variant for r in comparison.finals.values())
    ]
    for run in comparison.finals.values():
        for name, value in _surroundings(run):
            values = facts.setdefault(name, {variant: [] for variant in ran})[run["variant"]]
            if value not in values:
                values.append(value)
    unlike = {name: of for name, of in facts.items() if len({frozenset(values) for values in of.values()}) > 1}
    if not unlike:
        return []
    texts = {
        variant: ", ".join(f"{name} {' or '.join(of[variant]) or 'unknown'}" for name, of in unlike.items())
        for variant in ran
    }
    each = "; ".join(f"{listed(variants)} with {text}" for text, variants in grouped(texts).items())
    return [f"Not all variants were run alike, which may make a difference of its own: {each}."]


def _surroundings(run: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for fact in ("versions", "hardware", "git"):
        stored = run.get(fact)
        for name, value in stored.items() if isinstance(stored, dict) else [(fact, stored)]:
            if value is not None:
                yield name, str(value)


def _reason(run: dict[str, Any]) -> str:
    text = str(run.get("reason") or "unknown")
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}..."


def _failed_trials(comparison: Findings) -> list[str]:
    failed = Counter(run["variant"] for run in comparison.failed if run["kind"] == "trial")
    lines = []
    for variant, number in failed.items():
        runs = [run for run in comparison.failed if run["kind"] == "trial" and run["variant"] == variant]
        trials = number + sum(run["variant"] == variant for run in comparison.trials)
        lines.append(
            f"{variant}: {number} of {count(trials, 'trial')} failed ({_reason(runs[0])}), so that its settings "
            "were chosen among fewer."
        )
    return lines


# ------------------------------------------------------------------------------------------------------- how to read it


def in_plain_words(comparison: Findings) -> str:
    """What the tables hold, for a reader who knows no statistics."""
    right = "How often each variant was right on the test images"
    if comparison.balanced:
        right += " of a class, averaged over the classes"
    if _repetitions(comparison) < 2:
        return f"{right}. With one repetition of the training there is no spread, no interval and no test."
    return (
        f"{right}, and how much more often than {comparison.baseline}. "
        f"Only where p is at most {LEVEL} is a difference shown."
    )


def how_to_read(comparison: Findings) -> list[tuple[str, str]]:
    """The words and numbers of the tables, each in a plain sentence."""
    number = _repetitions(comparison)
    accuracy = (
        "The share of the test images that are recognised, in %. Balanced accuracy is the mean of that share over the "
        "classes, so that a rare class counts as much as a frequent one. A point is 1 on this scale."
    )
    items = {"accuracy": accuracy}
    if number > 1:
        items |= {
            "repetitions": f"The same variant is trained and tested again, {number} times in all: "
            f"{repetitions(comparison)}.",
            "±": "How much the accuracy changes from one repetition to the next (standard deviation). It is not "
            "an interval.",
            "a to b": "A 95 % interval: 19 of 20 such intervals contain the true value, and so few images and "
            "repetitions can't tell where in it. Of several tests p is corrected and intervals are not, so that one "
            "may exclude 0 although no difference is shown.",
            "p": "How often chance alone would make a difference at least as large between variants that are equally "
            f"good. Up to {LEVEL} a difference counts as shown. Above, none is shown, and there may still be "
            "one.",
        }
    items["gap"] = (
        "Training minus test accuracy, in points, neither of them balanced: the larger it is, the more the network has "
        "memorised its training images."
    )
    return list(items.items())


def technical_terms(comparison: Findings) -> list[str]:
    """How intervals and tests are made, for a reader who knows statistics; nothing where there are none."""
    if _repetitions(comparison) < 2:
        return []
    return [
        "In technical terms: intervals and the paired test are Student's t of a two-way random-effects analysis, with "
        "test images and repetitions both random (Obuchowski & Rockette 1995; Hillis 2007). To a difference two images "
        "are added, one for either sign (Bonett & Price 2012), and to an accuracy four (Agresti & Coull 1998), so that "
        "no interval is a point. p is at least 2^(1-k), the smallest that a sign test can give with k images on which "
        "the variants differ, and corrected after Holm.",
        scope(comparison),
    ]


def repetitions(comparison: Findings) -> str:
    """What was repeated, for each size where that differs."""
    return by_size(comparison.sizes, lambda size: _repeated(comparison, size)[0])


def _repetitions(comparison: Findings) -> int:
    return max((row.accuracy.repetitions for row in comparison.rows if row.accuracy), default=0)


def scope(comparison: Findings) -> str:
    """What the intervals and tests hold for."""
    on = by_size(comparison.sizes, lambda size: _repeated(comparison, size)[1])
    text = (
        f"They hold for new images of the same kind, and for training again{' ' if on.startswith('on ') else ', '}{on}."
    )
    if len({frozenset(_seeds_and_splits(comparison, size)) for size in comparison.sizes}) > 1:
        text += " The mean over the sizes is of those repetitions that all sizes have."
    return text


def _seeds_and_splits(comparison: Findings, size: Size) -> set[tuple[int, int]]:
    planned = comparison.planned.values()
    return {(run["seed"], run["split"]) for run in planned if run["samples_per_class"] == size}


def _are_folds_repeated(comparison: Findings) -> bool:
    """Whether the folds are the repetitions, for want of several seeds or splits."""
    pairs = {(run["seed"], run["split"]) for run in comparison.planned.values()}
    return bool(comparison.plan.get("folds")) and len(pairs) == 1


def _repeated(comparison: Findings, size: Size) -> tuple[str, str]:
    """What was repeated at a size after the plan, and on what training again intervals and tests then speak of."""
    pairs = _seeds_and_splits(comparison, size)
    seeds, splits = len({seed for seed, _ in pairs}), len({split for _, split in pairs})
    folds, drawn = comparison.plan.get("folds"), size is not None
    with_seeds = f"with {count(seeds, 'seed')}"
    if folds and splits > 1:
        own = ", each with a draw of training images of its own" if drawn else ""
        return (
            f"{splits} divisions of all images into {folds} folds{own}, {with_seeds} each",
            "on another division of the same images",
        )
    if folds:
        one = " and one draw of training images" if drawn else ""
        words = f"one division of all images into {folds} folds{one}, {with_seeds}"
        if seeds > 1:
            return words, "on the same folds"
        return (
            f"{words}, so that the folds are the repetitions",
            "on other folds, whose training images overlap, so that intervals may be somewhat too short",
        )
    if drawn and splits > 1:
        paired = len(pairs) == seeds == splits
        return (
            f"{count(seeds, 'seed')}, each with a draw of training images of its own"
            if paired
            else f"{splits} draws of training images, {with_seeds} each",
            "on another draw from the training images at hand",
        )
    same = "the same draw of training images" if drawn else "the same training images"
    return f"{count(seeds, 'seed')} on {same}", f"on {same}, not on others"
