"""JupyterLab as a real server on a folder, and a notebook in it driven by keyboard alone."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

from browsing import resize

TOKEN = "koala"
SETTINGS = {
    # Every output is in the page, also out of sight.
    "notebook-extension/tracker": {"windowingMode": "none"},
    # Neither news nor newer versions are looked for outside.
    "apputils-extension/notification": {
        "fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True,
    },
    "extensionmanager-extension/plugin": {"enabled": False},
}  # fmt: skip
COUNTS = """
return [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")]
  .map(e => e.closest(".jp-Cell").querySelector(".jp-InputPlaceholder") ? "folded"
    : e.textContent.replace(/[^0-9*]/g, ""));
"""
STATUS = "return document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status;"
FAILED = """
return [...document.querySelectorAll(".jp-OutputArea-output")]
  .filter(e => e.dataset.mimeType === "application/vnd.jupyter.stderr"  // a traceback, too
    || e.querySelector(".jupyter-widgets-error-widget")
    || /^(Loading widget|Error displaying widget)/.test(e.innerText))
  .map(e => e.innerText.slice(0, 300));
"""
OUTPUTS = """
return [...document.querySelectorAll(".jp-OutputArea-output")]
  .map(e => [e.innerText, ...[...e.querySelectorAll("img")].map(i => i.src)]);
"""
MARK = "document.querySelectorAll('.jp-OutputArea-output').forEach(e => e.dataset.old = 1);"
MARKED = "return Boolean(document.querySelector('.jp-OutputArea-output[data-old]'));"
PALETTE = """
return document.querySelector(".lm-CommandPalette-item.lm-mod-active")?.dataset.command;
"""
UNHIDE = "document.body.style.setProperty('overflow', 'visible', 'important');"
IN_NOTEBOOK = "return Boolean(document.activeElement.closest('.jp-Notebook'));"
IN_PALETTE = "return document.activeElement.matches('.lm-CommandPalette-input');"
CONTROLS = """
return [...document.querySelectorAll(".jp-OutputArea :is(input, select, button, textarea)")]
  .filter(e => e.checkVisibility());
"""
SHOWN = """
const explorer = document.querySelector(".jp-OutputArea .widget-vbox");
return JSON.stringify([explorer.innerText,
  [...explorer.querySelectorAll("img")].map(e => [e.alt, e.src])]);
"""
FOCUSED = """
const e = document.activeElement;
return e.labels?.length ? e.labels[0].textContent : e.textContent.slice(0, 60);
"""


@contextmanager
def server(folder, home):
    """JupyterLab's address on `folder`; settings and all that it writes are in `home`."""
    for name, content in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        f"--port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}",
        f"--IdentityProvider.token={TOKEN}", "--LabApp.extension_manager=readonly",
    ]  # fmt: skip
    with open(home / "server.log", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=_env(home), stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        until(lambda: answers(address, process, home), "JupyterLab answers", 60)
        yield address
    finally:
        process.terminate()  # it ends its kernels
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()  # its kernels see that it is gone, and end
            process.wait()


def _env(home):
    places = {
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "run",
        "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }  # fmt: skip
    return {
        **os.environ,
        **{name: str(home / place) for name, place in places.items()},
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }


def answers(address, process, home):
    if process.poll() is not None:
        raise RuntimeError((home / "server.log").read_text()[-2000:])
    try:
        call(address, "/api/status")
    except OSError:
        return False
    return True


def call(address, path, method="GET"):
    head = {"Authorization": f"token {TOKEN}"}
    request = urllib.request.Request(address + path, method=method, headers=head)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read() or "null")


def until(true, what, seconds=30):
    """Wait until `true()` is true, and return it."""
    end = time.monotonic() + seconds
    while not (found := true()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.05)
    return found


class Lab:
    """A notebook open in JupyterLab in `browser`."""

    def __init__(self, browser, address):
        self.browser, self.address = browser, address

    def open(self, name):
        """Open a notebook of the server's folder with a kernel of its own, and no other one's."""
        self.browser.get("about:blank")
        for session in call(self.address, "/api/sessions"):
            call(self.address, f"/api/sessions/{session['id']}", "DELETE")
        resize(self.browser, 1280)
        self.browser.get(f"{self.address}/lab/tree/{name}?token={TOKEN}&reset")
        until(self._ready, f"{name} is open with an idle kernel", 60)

    def _ready(self):
        try:
            kernels = call(self.address, "/api/kernels")
        except OSError:  # while a kernel starts or ends, the server may not know its state
            return False
        connected = kernels and kernels[0]["connections"]
        return connected and self.run(STATUS) == "idle" and self.run(IN_NOTEBOOK)

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def press(self, *typed, held=()):
        """Press keys, or type texts, at what has the focus."""
        from selenium.webdriver import ActionChains

        actions = ActionChains(self.browser)
        for key in held:
            actions.key_down(key)
        actions.send_keys(*typed)
        for key in held:
            actions.key_up(key)
        actions.perform()

    def run_all(self, seconds=900):
        """Run all cells by the command palette; return when none runs or waits any more."""
        self._command("Run All Cells", "notebook:run-all-cells")
        until(lambda: self.counts()[0], "the first cell has begun")
        self._rest(seconds)

    def restart_and_run_all(self, seconds=900):
        """The same in a kernel that is started anew, which JupyterLab asks back for."""
        from selenium.webdriver import Keys

        self.run(MARK)
        self._command("Restart Kernel and Run All Cells", "notebook:restart-run-all")
        until(self.dialogs, "JupyterLab asks whether to restart")
        self.press(Keys.ENTER)
        until(lambda: not self.run(MARKED), "all outputs are new", seconds)
        self._rest(seconds)

    def _command(self, words, name):
        from selenium.webdriver import Keys

        until(self._palette, "the command palette is open")
        self.press(words)
        until(lambda: self.run(PALETTE) == name, "the command is found")
        self.press(Keys.ENTER)

    def _rest(self, seconds):
        until(lambda: "*" not in self.counts(), "all cells have run", seconds)
        until(lambda: self.run(STATUS) == "idle", "the kernel is idle")

    def outputs(self):
        """Text and pictures of each output."""
        return self.run(OUTPUTS)

    def _palette(self):
        from selenium.webdriver import Keys

        if not self.run(IN_PALETTE):
            self.press("C", held=[Keys.CONTROL, Keys.SHIFT])
        time.sleep(0.5)  # a notebook that has just come to rest may take the focus once more
        return self.run(IN_PALETTE)

    def counts(self):
        """Each code cell's execution count: "" where it has not run, * where it still does."""
        return self.run(COUNTS)

    def failed(self):
        """Texts of the outputs that are errors or warnings, or widgets that are not shown."""
        return self.run(FAILED)

    def dialogs(self):
        return self.run("return [...document.querySelectorAll('.jp-Dialog')].map(e=>e.innerText)")

    def unroll(self):
        """Let axe judge the contrast of all outputs: it leaves out what cannot be seen.

        JupyterLab's body is 0 pixels high and hides what is beyond; the notebook scrolls.
        """
        self.run(UNHIDE)
        height = self.run("return document.querySelector('.jp-WindowedPanel-outer').scrollHeight")
        resize(self.browser, 1280, height + 300)

    def unnamed(self):
        """Controls in outputs that Chromium's accessibility tree has no name for."""
        found = [e for e in self.run(CONTROLS) if not e.accessible_name.strip()]
        return [e.get_attribute("outerHTML")[:200] for e in found]

    def focus(self):
        """The label or text of what has the focus."""
        return self.run(FOCUSED)

    def start_at(self, name):
        """Put the focus on the control of this name, as the first of a widget."""
        (found,) = [e for e in self.run(CONTROLS) if e.accessible_name == name]
        self.run("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", found)

    def tab_to(self, name):
        from selenium.webdriver import Keys

        self.press(Keys.TAB)
        assert self.focus() == name, f"Tab leads to {self.focus()!r}, not to {name!r}"

    def changes(self, *typed, told="", held=(), waiting="Drawing ..."):
        """Press keys; return the widget's text once it, or its picture, is another and rests.

        A picture and its text are two messages: the text must hold `told`, the kernel be idle to
        the server and to the page, which may lag behind it, and three looks see the same.
        """
        seen = [self.run(SHOWN)]

        def rests():
            idle = self._is_idle()  # before the look: what the kernel sent until then may be seen
            seen.append(self.run(SHOWN))
            text = json.loads(seen[-1])[0]
            still = seen[-3:] == seen[-1:] * 3 and seen[-1] != seen[0]
            return text if idle and still and told in text and waiting not in text else None

        self.press(*typed, held=held)
        return until(rests, f"{typed} at {self.focus()!r} lead to {told!r}")

    def _is_idle(self):
        states = [kernel["execution_state"] for kernel in call(self.address, "/api/kernels")]
        return states == ["idle"] and self.run(STATUS) == "idle"
