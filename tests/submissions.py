"""What students hand in, for the tests: the notebook of a hand-out, filled in or broken in one way each."""

import nbformat

NETWORK = """class MyNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.BatchNorm2d(8),
            nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.BatchNorm2d(16),
            nn.Conv2d(16, 32, 3), nn.ReLU(), nn.BatchNorm2d(32),
            nn.Conv2d(32, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )

    def forward(self, images):
        return self.layers(images)
"""
RECIPE = """def recipe(model, train_count):
    epochs, batch_size = 10, 32
    steps = epochs * math.ceil(train_count / batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=steps, cycle_momentum=False)
    return {"optimizer": optimizer, "scheduler": scheduler, "epochs": epochs, "batch_size": batch_size}
"""


def cell(notebook, name):
    """Return the cell that nbgrader knows by this name."""
    return next(cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("grade_id") == name)


def filled(path, network=NETWORK, recipe=RECIPE, analysis="I expected more.", **others):
    """Return the notebook of a hand-out with these cells; ``others`` replaces cells by name, with _ for -."""
    notebook = nbformat.read(path, as_version=4)
    cells = {"your-network": network, "your-recipe": recipe, "your-analysis": analysis}
    for name, source in (cells | {name.replace("_", "-"): source for name, source in others.items()}).items():
        if source is not None:
            cell(notebook, name).source = source
    return notebook


def with_cell(notebook, source, before="runs"):
    """Return the notebook with a cell that the student has added."""
    place = notebook.cells.index(cell(notebook, before))
    notebook.cells.insert(place, nbformat.v4.new_code_cell(source))
    return notebook
