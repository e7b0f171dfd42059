// Objects as JSON on standard input, one a line; what is wrong with each on standard output, an empty line for nothing.
import { createInterface } from "node:readline";
import { ScaledObject } from "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject";
import { PodMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PodMonitor";

const models = { PodMonitor, ScaledObject };
for await (const line of createInterface({ input: process.stdin })) {
  const object = JSON.parse(line);
  try {
    new models[object.kind](object).validate();
    console.log("");
  } catch (error) {
    console.log(error.message);
  }
}
