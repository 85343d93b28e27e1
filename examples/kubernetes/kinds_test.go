package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/kubernetes/test/integration/etcd"
)

const namespace = "muster"

func (a *apiserver) makeNamespace(t *testing.T, name string) {
	t.Helper()
	_, err := a.clients.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
}

// everyKind creates, reads, finds in the store, changes, lists and deletes one
// object of every kind that kube-apiserver stores. The objects, and the keys
// they belong under, are those of Kubernetes' own test of that.
func everyKind(t *testing.T, a *apiserver) {
	const namespace = "kinds"
	a.makeNamespace(t, namespace)
	_, lists, err := a.discovery.ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	served := map[schema.GroupVersionResource]metav1.APIResource{}
	for _, list := range lists {
		version, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list.APIResources {
			if slices.Contains(r.Verbs, "create") && slices.Contains(r.Verbs, "list") && slices.Contains(r.Verbs, "delete") {
				served[version.WithResource(r.Name)] = r
			}
		}
	}
	data := etcd.GetEtcdStorageDataForNamespace(namespace)
	resources := make([]schema.GroupVersionResource, 0, len(data))
	for gvr := range data {
		resources = append(resources, gvr)
	}
	sort.Slice(resources, func(i, j int) bool { return resources[i].String() < resources[j].String() })
	tried := 0
	for _, gvr := range resources {
		resource, ok := served[gvr]
		if !ok || gvr.Resource == "namespaces" || gvr.Resource == "customresourcedefinitions" {
			continue // of a feature that is off, or with a step of its own
		}
		tried++
		if err := a.lifeOf(t.Context(), gvr, resource, namespace, data[gvr]); err != nil {
			t.Errorf("%s: %v", gvr, err)
		}
	}
	t.Logf("%d kinds of %d", tried, len(served))
	if tried < 60 {
		t.Errorf("only %d kinds were tried", tried)
	}
}

// lifeOf takes one object through its life.
func (a *apiserver) lifeOf(ctx context.Context, gvr schema.GroupVersionResource, resource metav1.APIResource, namespace string, data etcd.StorageData) error {
	for _, needed := range data.Prerequisites {
		object, client, err := a.object(needed.GvrData, namespace, needed.Stub, served(a, needed.GvrData))
		if err != nil {
			return err
		}
		if _, err := client.Create(ctx, object, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create what it needs: %w", err)
		}
	}
	object, client, err := a.object(gvr, namespace, data.Stub, resource)
	if err != nil {
		return err
	}
	made, err := client.Create(ctx, object, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if got, err := a.store.client.Get(ctx, data.ExpectedEtcdPath); err != nil || got.Count != 1 {
		return fmt.Errorf("the key %s is not there: %v", data.ExpectedEtcdPath, err)
	}
	if _, err := client.Get(ctx, made.GetName(), metav1.GetOptions{}); err != nil {
		return fmt.Errorf("get: %w", err)
	}
	if slices.Contains(resource.Verbs, "patch") {
		changed, err := client.Patch(ctx, made.GetName(), types.MergePatchType, []byte(`{"metadata":{"labels":{"changed":"yes"}}}`), metav1.PatchOptions{})
		if err != nil {
			return fmt.Errorf("patch: %w", err)
		}
		if changed.GetLabels()["changed"] != "yes" || changed.GetResourceVersion() == made.GetResourceVersion() {
			return fmt.Errorf("the patch gives %v at resource version %s", changed.GetLabels(), changed.GetResourceVersion())
		}
	}
	list, err := client.List(ctx, metav1.ListOptions{LabelSelector: "changed=yes"})
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	if len(list.Items) == 0 {
		return fmt.Errorf("the list is empty")
	}
	now := int64(0)
	if err := client.Delete(ctx, made.GetName(), metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	return nil
}

func served(a *apiserver, gvr schema.GroupVersionResource) metav1.APIResource {
	list, err := a.discovery.ServerResourcesForGroupVersion(gvr.GroupVersion().String())
	if err == nil {
		for _, r := range list.APIResources {
			if r.Name == gvr.Resource {
				return r
			}
		}
	}
	return metav1.APIResource{}
}

func (a *apiserver) object(gvr schema.GroupVersionResource, namespace, stub string, resource metav1.APIResource) (*unstructured.Unstructured, dynamic.ResourceInterface, error) {
	object := &unstructured.Unstructured{}
	if err := json.Unmarshal([]byte(stub), &object.Object); err != nil {
		return nil, nil, err
	}
	object.SetAPIVersion(gvr.GroupVersion().String())
	object.SetKind(resource.Kind)
	if resource.Namespaced {
		object.SetNamespace(namespace)
		return object, a.dynamic.Resource(gvr).Namespace(namespace), nil
	}
	return object, a.dynamic.Resource(gvr), nil
}

// customResources defines a kind and uses it.
func customResources(t *testing.T, a *apiserver) {
	preserve := true
	definition := &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "members.muster.example"},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: "muster.example", Scope: apiextensionsv1.ClusterScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "members", Singular: "member", Kind: "Member", ListKind: "MemberList"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{
				Name: "v1", Served: true, Storage: true,
				Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object", XPreserveUnknownFields: &preserve}},
			}},
		},
	}
	if _, err := a.extensions.ApiextensionsV1().CustomResourceDefinitions().Create(t.Context(), definition, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	client := a.dynamic.Resource(schema.GroupVersionResource{Group: "muster.example", Version: "v1", Resource: "members"})
	member := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "muster.example/v1", "kind": "Member", "metadata": map[string]any{"name": "first"}, "votes": true,
	}}
	eventually(t, time.Minute, "the new kind is served", func() error {
		_, err := client.Create(t.Context(), member, metav1.CreateOptions{})
		return err
	})
	if _, err := client.Patch(t.Context(), "first", types.MergePatchType, []byte(`{"votes":false}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := client.Get(t.Context(), "first", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got.Object["votes"] != false {
		t.Errorf("after the patch it is %v", got.Object)
	}
}
