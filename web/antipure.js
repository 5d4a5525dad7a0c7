// "Show Report" draws its Markdown: the widget of core's Markdown notes, filled by each run and not by hand.
// (Core's "Preview as Text" draws Markdown in Nodes 2.0 alone; on the classic canvas its switch does nothing.)
import { app } from "../../scripts/app.js";
import { ComfyWidgets } from "../../scripts/widgets.js";

app.registerExtension({
  name: "AntiPure.ShowReport",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== "AntiPureShowReport") return;
    const { onNodeCreated, onExecuted } = nodeType.prototype;
    nodeType.prototype.onNodeCreated = function () {
      onNodeCreated?.apply(this, arguments);
      const shown = ComfyWidgets.MARKDOWN(this, "shown", ["STRING", { default: "" }], app).widget;
      shown.serialize = false;
      shown.options.serialize = false;
      if (shown.inputEl) shown.inputEl.readOnly = true;
    };
    nodeType.prototype.onExecuted = function (message) {
      onExecuted?.apply(this, arguments);
      const shown = this.widgets?.find((widget) => widget.name === "shown");
      if (shown) shown.value = [message?.text ?? ""].flat().join("\n\n");
    };
  },
});
