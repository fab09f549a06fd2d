from evaluation.report import main
from stages.files import command

command(main)
