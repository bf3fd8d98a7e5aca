"""docs/flags.md from the schema: python -m tools.flags > docs/flags.md"""

import sys

from utils.config.command_line import FLAGS
from utils.config.settings import EVERY, SETTINGS, SWITCH, Setting
from utils.distributed.launch import run_command
from utils.text import markdown_table

HEAD = """# Flags and settings

<!-- Written by python -m tools.flags > docs/flags.md -->

Flags go over the YAML file, the file over the built-in defaults. A flag that is `True/False` also
takes `yes/no` and `1/0`, and alone means True. Every setting can be given by
`--set SECTION.key=value`, repeatable: `--set TRAIN.arch=resnet18 --set "EVAL.scales=[1, 10]"`.
`-c FILE` reads another YAML file than `configs.yml`; published files load as they are.

Unknown keys and unusable values are refused before any work, all at once, with the nearest name.
What has no effect draws a warning. Errors are one line on stderr with exit status 2; Ctrl-C ends
with 130, SIGTERM with 143 and SIGHUP with 129, after saving.

On `--resume`, another value than the checkpoint's is refused where the last column says `fixed`,
and warned of where it says `noted`.

## Flags
"""
DIR = ["`DIR`", "the data set", "`DATA.imagenet`, `DATA.imagenet_c`", ""]


def main() -> None:
    print(page())


def page() -> str:
    """The whole of docs/flags.md."""
    flags = [DIR]
    for name, setting in ((name, EVERY[key]) for name, key in FLAGS.items()):
        value = "" if setting.flag in (SWITCH, "BOOL") else f" {setting.flag}"
        names = [f"`{setting.short}`"] * bool(setting.short) + [f"`--{name}{value}`"]
        script = f"`{setting.script}.py`" if setting.script else ""
        flags.append([", ".join(names), setting.help, default(setting), script])
    settings = [
        [f"`{key}`", setting.help, default(setting), setting.resume.replace("free", "")]
        for key, setting in SETTINGS.items()
    ]
    of_flags = markdown_table(["flag", "meaning", "default", "of"], flags, numbers=False)
    header = ["setting", "meaning", "default", "on resume"]
    of_settings = markdown_table(header, settings, numbers=False)
    return "\n".join([HEAD, of_flags, "\n## Settings\n", of_settings])


def default(setting: Setting) -> str:
    return setting.default_text and f"`{setting.default_text}`"


if __name__ == "__main__":
    sys.exit(run_command(main))
