"""`TRAIN.phases`: trainings in turn, each of which starts from the weights of the one before."""

from __future__ import annotations

from dataclasses import replace

from utils.config.load import merge
from utils.config.settings import Config, Given, Source
from utils.errors import UserError
from utils.storage.run_folder import LATEST


def phases_of(config: Config) -> list[Config]:
    """The settings of every phase in turn; the settings themselves where there are no phases.

    What stands on the command line goes over a phase's value.

    Raises:
        UserError: one line for every unknown key and unusable value, or for a phase that ends where
            the one before does.
    """
    phases: list[Config] = []
    for number, values in enumerate(config.TRAIN.phases, 1):
        given = [
            Given(f"TRAIN.phases, {number}: {key}", section, name, value, Source.GIVEN_FILE)
            for key, value in values.items()
            for section, _, name in [key.partition(".")]
            if not config.given(key)
        ]
        content = config.as_dict()
        content["TRAIN"] |= {"phases": [], "phase": number}
        options = config.OPTIONS
        if phases:
            resume = "auto" if options.resume else ""
            start = str(phases[-1].run_dir / LATEST)
            options = replace(options, resume=resume, start_from=start)
        phase = merge(content, given, options=options)
        if phases and phase.passes <= phases[-1].passes:
            fixed = ", on the command line for all phases," * config.given("TRAIN.epochs")
            raise UserError(
                f"TRAIN.phases, {number}: TRAIN.epochs {phase.passes}{fixed} must be more than the"
                f" {phases[-1].passes} of the phase before: epochs count on from phase to phase"
            )
        sources = {**config.sources, **{f"{g.section}.{g.key}": g.source for g in given}}
        phases.append(replace(phase, sources=sources))
    return phases or [config]
