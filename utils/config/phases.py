"""`TRAIN.phases`: trainings in turn, each of which starts from the weights of the one before."""

from dataclasses import replace

from utils.config.load import merge
from utils.config.settings import Config, GivenValue, Source
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
        changes = [
            GivenValue(f"TRAIN.phases, {number}: {key}", key, value, Source.GIVEN_FILE)
            for key, value in values.items()
            if not config.given(key)
        ]
        content, options = config.as_dict(), config.OPTIONS
        content["TRAIN"] |= {"phases": [], "phase": number}
        if phases:
            start = str(phases[-1].run_dir / LATEST)
            options = replace(options, resume="auto" * bool(options.resume), start_from=start)
        phase = merge(content, changes, options=options)
        if phases and phase.passes <= phases[-1].passes:
            fixed = ", on the command line for all phases," * config.given("TRAIN.epochs")
            raise UserError(
                f"TRAIN.phases, {number}: TRAIN.epochs {phase.passes}{fixed} must be more than the"
                f" {phases[-1].passes} of the phase before: epochs count on from phase to phase"
            )
        sources = {**config.sources, **{change.key: change.source for change in changes}}
        phases.append(replace(phase, sources=sources))
    return phases or [config]
