// Package kubernetes runs a kube-apiserver, and what belongs to it, on clusters
// that muster has made, on practice hosts and in the pods of real kubelets. It is a module of its own: what it takes to build
// Kubernetes is no business of muster's.
package kubernetes
