package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	v1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apiserver/pkg/admission"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/environment"
	"sigs.k8s.io/yaml"
)

// expression is one of a policy's, with the type that it must be of.
type expression struct {
	name, text string
	kind       *cel.Type
}

func (e expression) GetName() string          { return e.name }
func (e expression) GetExpression() string    { return e.text }
func (e expression) ReturnTypes() []*cel.Type { return []*cel.Type{e.kind} }

// question is what a server is asked: whether it takes this object, in place of an old one where there is one.
type question struct {
	Object    map[string]any
	OldObject map[string]any
}

// answer is what the policy says of it; empty where it takes it.
type answer struct {
	Minor   string `json:"minor"`
	Refused string `json:"refused"`
	Cost    int64  `json:"cost"`
}

// ask compiles a ValidatingAdmissionPolicy as a server of this program's pretended minor compiles a new one, prints what
// it does not take of it, and else one line of JSON for each question. It returns the number of faults.
func ask(minor string, text []byte, questions []question, out io.Writer) (int, error) {
	var policy v1.ValidatingAdmissionPolicy
	if err := yaml.UnmarshalStrict(text, &policy); err != nil {
		return 0, err
	}
	base := environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion())
	compiler, err := plugincel.NewCompositedCompiler(base)
	if err != nil {
		return 0, err
	}
	options := plugincel.OptionalVariableDeclarations{HasAuthorizer: true}
	faults := 0
	check := func(what string, result plugincel.CompilationResult) {
		if result.Error != nil {
			faults++
			fmt.Fprintf(out, "%s: %s: %q\n", minor, what, result.Error.Error())
		}
	}
	for _, one := range policy.Spec.Variables {
		variable := expression{one.Name, one.Expression, cel.AnyType}
		check(one.Name, compiler.CompileAndStoreVariable(variable, options, environment.NewExpressions))
	}
	var expressions []plugincel.ExpressionAccessor
	for _, validation := range policy.Spec.Validations {
		for _, one := range []expression{
			{"expression", validation.Expression, cel.BoolType},
			{"messageExpression", validation.MessageExpression, cel.StringType},
		} {
			check(one.name, compiler.CompileCELExpression(one, options, environment.NewExpressions))
			expressions = append(expressions, one)
		}
	}
	if faults > 0 {
		return faults, nil
	}
	evaluator := compiler.CompileCondition(expressions, options, environment.NewExpressions)
	lines := json.NewEncoder(out)
	for _, one := range questions {
		attributes := one.attributes()
		results, left, err := evaluator.ForInput(
			context.Background(), attributes, plugincel.CreateAdmissionRequest(attributes.Attributes, gvr(), gvk()),
			plugincel.OptionalVariableBindings{}, nil, celconfig.RuntimeCELCostBudget,
		)
		if err != nil {
			return faults, err
		}
		said := answer{Minor: minor, Refused: refusal(results), Cost: celconfig.RuntimeCELCostBudget - left}
		if err := lines.Encode(said); err != nil {
			return faults, err
		}
	}
	return faults, nil
}

// refusal joins the messages of the validations that fail; results are a validation's and its message's in turn.
func refusal(results []plugincel.EvaluationResult) string {
	said := ""
	for i := 0; i+1 < len(results); i += 2 {
		valid, message := results[i], results[i+1]
		switch {
		case valid.Error != nil:
			said += valid.Error.Error()
		case valid.EvalResult != types.True && message.Error != nil:
			said += message.Error.Error()
		case valid.EvalResult != types.True:
			said += fmt.Sprint(message.EvalResult.Value())
		}
	}
	return said
}

func gvk() metav1.GroupVersionKind {
	return metav1.GroupVersionKind{Group: "modelcompression.io", Version: "v1alpha1", Kind: "CompressionRun"}
}

func gvr() metav1.GroupVersionResource {
	return metav1.GroupVersionResource{Group: "modelcompression.io", Version: "v1alpha1", Resource: "compressionruns"}
}

// readQuestions reads numbers as a server does: whole ones as int64.
func readQuestions(documents [][]byte) ([]question, error) {
	questions := make([]question, 0, len(documents))
	for _, document := range documents {
		text, err := yaml.YAMLToJSON(document)
		if err != nil {
			return nil, err
		}
		both := map[string]any{}
		if err := utiljson.Unmarshal(text, &both); err != nil {
			return nil, err
		}
		object, _ := both["object"].(map[string]any)
		old, _ := both["oldObject"].(map[string]any)
		questions = append(questions, question{Object: object, OldObject: old})
	}
	return questions, nil
}

func (q question) attributes() *admission.VersionedAttributes {
	object := runtime.Object(&unstructured.Unstructured{Object: q.Object})
	var old runtime.Object
	operation := admission.Create
	if q.OldObject != nil {
		old, operation = &unstructured.Unstructured{Object: q.OldObject}, admission.Update
	}
	kind := schema.GroupVersionKind(gvk())
	plain := admission.NewAttributesRecord(
		object, old, kind, "namespace", "name", schema.GroupVersionResource(gvr()), "", operation, nil, false, nil,
	)
	return &admission.VersionedAttributes{
		Attributes:         plain,
		VersionedObject:    admission.NewLazyObject(object),
		VersionedOldObject: admission.NewLazyObject(old),
		VersionedKind:      kind,
	}
}
