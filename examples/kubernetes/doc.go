// Package kubernetes runs a kube-apiserver, and what belongs to it, on clusters
// that muster has made. It is a module of its own: what it takes to build
// Kubernetes is no business of muster's.
package kubernetes
