// Holds jobs against the types of Nomad's own client, which its own parser of jobs is made of too: every attribute and every block
// must be one of theirs, of their kind. It stands in for `nomad job validate` on machines without Nomad; what only Nomad's server
// knows, such as which values go together, it does not.
//
//	jobs FILE.hcl... FILE.json...
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/nomad/api"
	"github.com/zclconf/go-cty/cty"
)

// What a port is in a job file: its parser has this one by hand.
type port struct {
	Label           string `hcl:",label"`
	Static          int    `hcl:"static,optional"`
	To              int    `hcl:"to,optional"`
	HostNetwork     string `hcl:"host_network,optional"`
	IgnoreCollision bool   `hcl:"ignore_collision,optional"`
}

var wrong []string

func say(at hcl.Range, format string, values ...any) {
	wrong = append(wrong, fmt.Sprintf("%s: %s", at, fmt.Sprintf(format, values...)))
}

func bare(of reflect.Type) reflect.Type {
	for of.Kind() == reflect.Pointer {
		of = of.Elem()
	}
	return of
}

func check(body *hclsyntax.Body, of reflect.Type, where string) {
	attributes, blocks := map[string]reflect.Type{}, map[string]reflect.Type{}
	for i := range of.NumField() {
		field := of.Field(i)
		name, kind, _ := strings.Cut(field.Tag.Get("hcl"), ",")
		switch kind {
		case "block":
			blocks[name] = field.Type
		case "optional", "":
			if name != "" {
				attributes[name] = field.Type
			}
		}
	}
	if of == reflect.TypeFor[api.NetworkResource]() {
		blocks["port"] = reflect.TypeFor[[]port]()
	}
	for name, attribute := range body.Attributes {
		kind, is := attributes[name]
		if !is {
			say(attribute.Range(), "%s has no attribute %s", where, name)
			continue
		}
		value(attribute.Expr, bare(kind), where+"."+name)
	}
	seen := map[string]bool{}
	for _, block := range body.Blocks {
		kind, is := blocks[block.Type]
		if !is {
			say(block.Range(), "%s has no block %s", where, block.Type)
			continue
		}
		kind = bare(kind)
		if kind.Kind() == reflect.Map && kind.Elem().Kind() != reflect.Pointer {
			// Free names: metadata, environment, a driver's own configuration.
			if len(block.Labels) > 0 || len(block.Body.Blocks) > 0 {
				say(block.Range(), "%s.%s holds names and values alone", where, block.Type)
			}
			continue
		}
		if kind.Kind() != reflect.Slice && kind.Kind() != reflect.Map {
			if seen[block.Type] {
				say(block.Range(), "%s has one %s", where, block.Type)
			}
			seen[block.Type] = true
		}
		if kind.Kind() == reflect.Slice || kind.Kind() == reflect.Map {
			kind = bare(kind.Elem())
		}
		labels := 0
		for i := range kind.NumField() {
			if strings.HasSuffix(kind.Field(i).Tag.Get("hcl"), ",label") {
				labels++
			}
		}
		if len(block.Labels) != labels {
			say(block.Range(), "%s.%s has %d labels, not %d", where, block.Type, labels, len(block.Labels))
		}
		check(block.Body, kind, where+"."+block.Type)
	}
}

func value(expression hclsyntax.Expression, kind reflect.Type, where string) {
	// What Nomad fills in is text.
	if len(expression.Variables()) > 0 {
		if kind.Kind() != reflect.String && kind.Kind() != reflect.Slice {
			say(expression.Range(), "%s is no text, and nothing is filled in", where)
		}
		return
	}
	is, problems := expression.Value(nil)
	if problems.HasErrors() {
		say(expression.Range(), "%s: %s", where, problems)
		return
	}
	right := false
	switch {
	case kind == reflect.TypeFor[time.Duration]():
		if is.Type() == cty.String {
			_, problem := time.ParseDuration(is.AsString())
			right = problem == nil
		}
	case kind.Kind() == reflect.String:
		right = is.Type() == cty.String
	case kind.Kind() == reflect.Bool:
		right = is.Type() == cty.Bool
	case kind.Kind() >= reflect.Int && kind.Kind() <= reflect.Uint64:
		right = is.Type() == cty.Number
	case kind.Kind() == reflect.Slice:
		right = is.Type().IsTupleType()
		for _, one := range is.AsValueSlice() {
			right = right && one.Type() == cty.String
		}
	}
	if !right {
		say(expression.Range(), "%s is a %s, not a %s", where, kind, is.Type().FriendlyName())
	}
}

func hclJob(name string, content []byte) {
	file, problems := hclparse.NewParser().ParseHCL(content, name)
	if problems.HasErrors() {
		for _, problem := range problems {
			wrong = append(wrong, problem.Error())
		}
		return
	}
	body := file.Body.(*hclsyntax.Body)
	if len(body.Attributes) > 0 || len(body.Blocks) != 1 || body.Blocks[0].Type != "job" || len(body.Blocks[0].Labels) != 1 {
		wrong = append(wrong, name+": it is not one job with one name")
		return
	}
	check(body.Blocks[0].Body, reflect.TypeFor[api.Job](), "job")
}

func jsonJob(name string, content []byte) {
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	var request api.JobRegisterRequest
	if problem := decoder.Decode(&request); problem != nil {
		wrong = append(wrong, fmt.Sprintf("%s: %s", name, problem))
		return
	}
	if request.Job == nil || request.Job.ID == nil || !request.Job.IsParameterized() {
		wrong = append(wrong, name+": it is no parameterised job")
		return
	}
	// Whatever is filled in by default is filled in without a fault.
	request.Job.Canonicalize()
}

func main() {
	for _, name := range os.Args[1:] {
		content, problem := os.ReadFile(name)
		switch {
		case problem != nil:
			wrong = append(wrong, problem.Error())
		case strings.HasSuffix(name, ".json"):
			jsonJob(name, content)
		default:
			hclJob(name, content)
		}
	}
	if len(os.Args) < 2 || len(wrong) > 0 {
		fmt.Fprintf(os.Stderr, "%d jobs, %d faults\n%s\n", len(os.Args)-1, len(wrong), strings.Join(wrong, "\n"))
		os.Exit(1)
	}
	fmt.Printf("%d jobs are jobs\n", len(os.Args)-1)
}
