from secure_eval.launch import Launcher
class Processes(Launcher):
    pass
