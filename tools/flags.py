"""Write the tables of docs/flags.md from the schema: python -m tools.flags"""

import sys
from pathlib import Path

from utils.config.command_line import FLAGS, tool_parser
from utils.config.settings import EVERY, SETTINGS, SWITCH, Setting
from utils.distributed.launch import run_command
from utils.storage.files import atomic_write
from utils.text import markdown_table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "flags.md"
DIR = ["`DIR`", "the data set", "`DATA.imagenet`, `DATA.imagenet_c`", ""]


def main() -> None:
    tool_parser("flags", __doc__).parse_args()
    atomic_write(PAGE, page())


def page() -> str:
    """The whole of docs/flags.md; what stands above the tables is kept."""
    head = PAGE.read_text(encoding="utf-8").partition("## Flags\n")[0]
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
    return f"{head}## Flags\n\n{of_flags}\n\n## Settings\n\n{of_settings}\n"


def default(setting: Setting) -> str:
    return setting.default_text and f"`{setting.default_text}`"


if __name__ == "__main__":
    sys.exit(run_command(main))
