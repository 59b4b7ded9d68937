// First what is small and above, then the episodes, which come last in the file.

const report = JSON.parse(byId("report-data").textContent);
readRamp();
prepareCharts(report.charts, report.marks);

async function startViewer() {
  const root = byId("viewer");
  try {
    const values = await unpack(byId("report-episodes").textContent.trim());
    byId("report-episodes").remove();
    if (values.episodes.update.length) new Viewer(root, new Store(values), report.facts);
    else byId("viewer-state").textContent = "No episode was written: log_trajectories was off, or the run ended before its first update did.";
    prepareExplorer(values.measures, report.stepName);
  } catch (error) {
    byId("viewer-state").textContent = String(error.message || error);
    byId("measures").hidden = true;
  }
  root.setAttribute("aria-busy", "false");
  performance.mark("viewer-ready");
}
