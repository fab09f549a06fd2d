from evaluation.report import main
from files import command

command(main)
